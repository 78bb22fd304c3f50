// Which kernel a convolution takes, and why the others do not: the one decision there is, for running and for telling.
#pragma once

#include <string>

#include "kernels.h"

namespace groupwise {

// In the order of KERNELS: `planar` has vectors along the width, `channels` along the channels, `pytorch` is not ours.
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
  Strides x_strides, y_strides;  // as kernels read and write them (`meaningful`)
  WeightStrides w_strides;
  bool transposed = false;  // a grad_input that is a transposed convolution's forward, which PyTorch computes another way
};

// Of strides, paddings, dilations and kernels, and of sizes: beyond all networks.
constexpr int64_t kMostExtent = 1024, kMostSize = int64_t{1} << 24;
// Of the product of the strides of a grad_input, which are laid out one by one for every call.
constexpr int64_t kMostPhases = 1024;

// Why a kernel is not taken.
enum class Refusal { none, dimensions, dtype, empty, extent, channels, scratch, slower, not_first, forced };

struct Choice {
  Kernel kernel;
  Refusal refusals[2];  // of planar and channels
};

struct Plan {
  Request request;
  Choice choice;
};

// Below this many multiply-accumulates a second thread costs more than it brings: waking one takes 5-10 us here.
constexpr int64_t kWorthAThread = 400'000;
// How many of the threads the work is worth: all, or one.
int64_t threads_worth(const Request& request);

// Of the instruction set in use. `forced` is the one kernel that may run, or null.
Choice choose(const Request& request, const char* forced);

// The plan as JSON text.
std::string describe(const Plan& plan);

// The correlations that make a request, one after the other, without their tensors; of a grad_input, one for each remainder
// of the stride of the height.
std::vector<Correlation> correlations_of(const Request& request);
GradWeight grad_weight_of(const Request& request);

}  // namespace groupwise
