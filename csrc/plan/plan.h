// Decides which kernel computes a convolution, and why the others do not. Dispatch and `groupwise.plan` both ask here.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace groupwise {

// The order is that of KERNELS in plan.py. `planar` has vectors along the width, `channels` along the channels, and `pytorch`
// is PyTorch's own kernel.
enum class Kernel { planar, channels, pytorch };
constexpr const char* kKernelNames[] = {"planar", "channels", "pytorch"};
constexpr const char* kDirectionNames[] = {"forward", "grad_input", "grad_weight"};

struct Request {
  Direction direction;
  Problem problem;
  bool channels_last;
  bool float32;
  int64_t threads;
  int64_t dimensions;
  Strides x_strides, y_strides;  // as the kernels read and write them (`meaningful`)
  WeightStrides w_strides;
  bool transposed = false;  // a grad_input that is a transposed convolution's forward
};

// The largest stride, padding, dilation or kernel, and the largest size: beyond all published networks.
constexpr int64_t kMostExtent = 1024, kMostSize = int64_t{1} << 24;
// The most phases of a grad_input (its strides' product), each of which is laid out at every call.
constexpr int64_t kMostPhases = 1024;

// Why a kernel does not run.
enum class Refusal { none, dimensions, dtype, empty, extent, channels, scratch, slower, not_first, forced };

struct Choice {
  Kernel kernel;
  Refusal refusals[2];  // of planar and channels
};

struct Plan {
  Request request;
  Choice choice;
};

// With fewer multiply-accumulates a second thread costs more than it saves: waking one takes 5-10 us (AVX2, 2 cores).
constexpr int64_t kWorthAThread = 400'000;
// Returns how many threads compute: all, or one for little work.
int64_t threads_worth(const Request& request);

// Chooses for the instruction set in use. `forced` is the one kernel that may run; null or "" leaves the choice.
Choice choose(const Request& request, const char* forced);

// Returns the plan as JSON.
std::string describe(const Plan& plan);

// Returns the correlations that compute a request, without their tensors: one for a forward, and one for each phase of the
// height for a grad_input.
std::vector<Correlation> correlations_of(const Request& request);
GradWeight grad_weight_of(const Request& request);

}  // namespace groupwise
