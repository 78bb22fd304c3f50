// Declares what Python calls by ctypes. Texts are UTF-8 JSON. A call that fills a buffer returns the bytes that the text
// needs, including the closing NUL, and writes nothing if `size` is smaller. No exception leaves a function: one that fails, for
// want of memory say, returns -1 or null.
#pragma once

#include <cstdint>

#define GROUPWISE_API extern "C" __attribute__((visibility("default")))

// Rises with every change of a signature below, of a text's keys, and of the operators and classes that Python calls by torch.ops and
// torch.classes.
#define GROUPWISE_API_VERSION 17

GROUPWISE_API int32_t groupwise_api_version();

// What went wrong in the last function that failed in this thread.
GROUPWISE_API const char* groupwise_failure();

// {"torch": "2.13.0", "compiler": "GNU 12.2.0", "isas": ["baseline", "avx2"], "runs": ["baseline"], "kernels": [{"name":
// "planar", "directions": ["forward"], "documentation": ""}]}: `runs` are the instruction sets that this machine has.
GROUPWISE_API int64_t groupwise_build(char* text, int64_t size);

// The name of the instruction set in use; or, where the one that GROUPWISE_ISA names cannot run, "!" and the reason.
GROUPWISE_API int64_t groupwise_isa(char* text, int64_t size);

// Registers the kernels of aten::convolution and aten::convolution_backward. Calls after the first change nothing.
GROUPWISE_API int32_t groupwise_register();

// Turns dispatch on or off: for the process, and for this thread (1 on, -1 off, 0 as the process, -2 off except for what PyTorch's
// kernel may harm the process by). The second returns what the thread had before.
GROUPWISE_API void groupwise_dispatch(int32_t on);
GROUPWISE_API int32_t groupwise_dispatch_thread(int32_t state);

// Sets the one kernel that may run in this thread, "" for the planner's choice. Returns the one before, valid until this
// thread calls it again or ends.
GROUPWISE_API const char* groupwise_force(const char* kernel);

// Sets the instruction set of this thread, "" for that of the process. Returns 0 and changes nothing if it cannot run here.
GROUPWISE_API int32_t groupwise_force_isa(const char* isa);
// Returns the one that this thread forces, or "".
GROUPWISE_API const char* groupwise_forced_isa();

// numbers: direction (0 forward, 1 grad_input, 2 grad_weight), batch, in_channels, out_channels, groups, channels_last,
// threads, dimensions, then in, out, kernel, stride, padding (before), dilation of the height and the same of the width,
// whether the weight is channels_last, whether the convolution is a transposed one (2 stands for the forward of one with a
// bias, which PyTorch runs in another way), and the same six of the depth, which are 1, 1, 1, 1, 0, 1 in 1-D and 2-D.
GROUPWISE_API int64_t groupwise_plan(const int64_t* numbers, const char* dtype, char* text, int64_t size);

// Turns on that requests are measured when they are first met, each for as long as so many calls of PyTorch's kernel take, and
// off by 0, until that took so many seconds in all. With `unknown` only those are measured of which no table knows. Results are
// added as lines to the file at `path`; "" keeps none.
GROUPWISE_API int32_t groupwise_tune(double calls, double seconds, int32_t unknown, const char* path);

// Allows the planner to choose `fft`, whose error is relative to the norm of what it reads, or (0, as at first) does not.
GROUPWISE_API void groupwise_fft(int32_t allowed);

// The features of the same request by their names, by which tables tell layers apart: {"macs": 20.5, ...}.
GROUPWISE_API int64_t groupwise_features(const int64_t* numbers, const char* dtype, char* text, int64_t size);

// Sets the tables by which kernels are chosen for an instruction set ("avx2"; "avx2 3-D" for its 3-D
// convolutions, "avx2 bfloat16" for those of that dtype), as
// csrc/plan/forest.h reads them; no numbers for none.
// `features` and `kernels` are names joined by commas, and `record` is what a plan calls them. Returns 0 and changes nothing if
// the numbers do not fit together.
GROUPWISE_API int32_t groupwise_tables(const char* isa, const char* record, const char* features, const char* kernels,
                                       const double* numbers, int64_t count);

// Sets the cost model, as csrc/plan/model.h reads it; no numbers for none. Returns 0 and changes nothing if they do not fit.
GROUPWISE_API int32_t groupwise_model(const char* record, const char* kernels, const double* numbers, int64_t count);

// Lets threads share work of an instruction set if each gets so many products for each lane of its vectors, or more. Returns 0
// if it cannot run here.
GROUPWISE_API int32_t groupwise_share(const char* isa, double products_a_lane);

// Lets the start of threads take so many seconds, by which work other than convolutions is shared, or as many as they are measured
// to if the number is negative.
GROUPWISE_API void groupwise_start_takes(double seconds);

// {"peak": 1e11, "bandwidth": 1e10}: operations a second of one core by the instruction set in use, and bytes a second of a copy.
// Measures them when first called, in about 10 ms.
GROUPWISE_API int64_t groupwise_machine(char* text, int64_t size);

// Gives the core what was measured before: for an instruction set and a request as in a line of that file, the seconds of each
// of `count` kernels, whose names are joined by commas, and how often that was measured. A plan that was made before stays until `groupwise_policy_changed`.
GROUPWISE_API int32_t groupwise_remember(const char* isa, const char* request, const char* kernels, const double* seconds,
                                         int64_t count, int64_t tries);
// Forgets all of that, and lets measuring begin anew with all of its seconds.
GROUPWISE_API int32_t groupwise_forget();
// Lets every thread plan anew.
GROUPWISE_API void groupwise_policy_changed();

// {"requests": 3, "seconds": 0.01, "drawn": 0.01, "lost": 0}: what was measured so far, how long that took, how much of it counts
// against the seconds that measuring may take, and how many results could not be written.
GROUPWISE_API int64_t groupwise_measured(char* text, int64_t size);

// Sets what is called when these seconds are spent.
GROUPWISE_API void groupwise_when_spent(void (*told)());

// Sets what is called before a request is measured that no table knows: once after each call of `groupwise_tune` with `unknown`.
GROUPWISE_API void groupwise_when_unknown(void (*told)());

// Replaces the clock of measurements, which returns seconds; null sets the processor's own. For tests.
GROUPWISE_API void groupwise_clock(double (*clock)());

// Opens a recording of the plans that dispatched convolutions of all threads make, and returns its number.
GROUPWISE_API int64_t groupwise_record_start();
// Closes a recording: {"plans": [...], "dropped": 0}, oldest first; `dropped` counts those beyond its limit of 100,000. The
// recording is freed once its text fits the buffer.
GROUPWISE_API int64_t groupwise_record_stop(int64_t recording, char* text, int64_t size);
