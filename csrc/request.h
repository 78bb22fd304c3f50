// What is asked for: one direction of one convolution of tensors with given strides, on so many threads of a target.
#pragma once

#include <string>
#include <vector>

#include "dtype.h"
#include "problem.h"
#include "targets/isa.h"

namespace groupwise {

constexpr const char* kDirectionNames[] = {"forward", "grad_input", "grad_weight"};

// What a 3-D convolution has beside the planes of its `Problem`: the axis of its depth, and the strides from plane to plane of
// x and y and from tap to tap of the weight. The default is that of 1-D and 2-D convolutions.
struct Depth {
  Axis axis{1, 1, 1, 1, 0, 1};
  int64_t x = 0, y = 0, w = 0;
  bool operator==(const Depth&) const = default;
};

struct Request {
  Direction direction;
  Problem problem;
  bool channels_last;
  Dtype dtype;
  int64_t threads;
  int64_t dimensions;
  Strides x_strides, y_strides;  // as the kernels read and write them (`meaningful`)
  WeightStrides w_strides;
  bool transposed = false;    // a grad_input that is a transposed convolution's forward
  bool biased = false;        // with a bias, which takes PyTorch many times as long as the transposed convolution itself
  bool pytorch_right = true;  // as far as its settings tell, which are not in the key
  const Kernels* target = &kernels();
  Depth depth{};
  bool operator==(const Request&) const = default;
};

// The largest stride or dilation, the largest kernel or padding, and the largest size: beyond all published networks.
constexpr int64_t kMostStep = 1024, kMostTaps = int64_t{1} << 16, kMostSize = int64_t{1} << 24;
// The most phases of a grad_input (its strides' product), each of which is laid out once a plan.
constexpr int64_t kMostPhases = 1024;

// Returns the request as text that tells all that a plan depends on but the target: what was measured is kept by it.
std::string key_of(const Request& request);

struct RequestHash {
  size_t operator()(const Request& request) const;
};

// Returns the numbers that a pass reads and writes at least: of both images and of the weight.
int64_t numbers_of(const Problem& problem);

// Returns the multiply-accumulates of the convolution, those on padding among them.
int64_t products_of(const Problem& problem);
// The same of all planes.
int64_t products_of(const Request& request);

// Returns the correlations that compute a request, without their tensors: one for a forward, and one for each phase of the
// height for a grad_input.
std::vector<Correlation> correlations_of(const Request& request);
GradWeight grad_weight_of(const Request& request);

// Returns the weight's gradient with input and output channels exchanged, which is the same sum if one tap reads all positions.
GradWeight exchanged(GradWeight work);

}  // namespace groupwise
