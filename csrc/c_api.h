// What Python calls, by ctypes. Texts are UTF-8 JSON; a call that fills a buffer returns the bytes it needs, the closing
// NUL included, and writes nothing where `size` is smaller.
#pragma once

#include <cstdint>

#define GROUPWISE_API extern "C" __attribute__((visibility("default")))

// Raised with every change of a signature below or of a text's keys.
#define GROUPWISE_API_VERSION 4

GROUPWISE_API int32_t groupwise_api_version();

// {"torch": "2.13.0", "compiler": "GNU 12.2.0", "isas": ["baseline", "avx2"], "kernels": [...]}
GROUPWISE_API int64_t groupwise_build(char* text, int64_t size);

// The instruction set in use: its name, or the reason why the one that GROUPWISE_ISA asks for cannot be had, after "!".
GROUPWISE_API int64_t groupwise_isa(char* text, int64_t size);

// Registers the kernels of aten::convolution and aten::convolution_backward; once is enough for a process.
GROUPWISE_API void groupwise_register();

// Whether convolutions take the route: of the process, and of this thread (1 yes, -1 no, 0 as the process), which
// returns what the thread had before.
GROUPWISE_API void groupwise_route(int32_t on);
GROUPWISE_API int32_t groupwise_route_thread(int32_t state);

// For a hook that runs before a node of autograd's graph: that node's convolution takes the route, unless this thread's may
// not.
GROUPWISE_API void groupwise_route_node();

// Of this thread: the one kernel that may run, "" for the planner's choice. Returns what it was, valid until this
// thread calls it again or ends.
GROUPWISE_API const char* groupwise_force(const char* kernel);

// numbers: direction (0 forward, 1 grad_input, 2 grad_weight), batch, in_channels, out_channels, groups, channels_last,
// threads, dimensions, then in, out, kernel, stride, padding (before), dilation of the height and the same of the width,
// whether the weight is channels_last, and whether the convolution is a transposed one.
GROUPWISE_API int64_t groupwise_plan(const int64_t* numbers, const char* dtype, char* text, int64_t size);

// The plans of the convolutions that took the route since the last call with clear, oldest first; at most 1024.
GROUPWISE_API int64_t groupwise_last_plans(int32_t clear, char* text, int64_t size);
