// Runs what was planned. Tensors are contiguous along w (planar) or along c (channels-last), and have any other strides.
#pragma once

#include "plan/plan.h"

namespace groupwise {

// The names are those of the forward convolution. The direction decides which of x, w and y is written.
struct Tensors {
  float* x;
  float* y;
  float* w;
  const float* bias;  // for a forward, plain or transposed (which is a grad_input); or null
};

void run(const Request& request, Kernel kernel, const Tensors& tensors, ParallelFor parallel_for);

// Computes sums[c], the sum over n, h and w, which is a bias's gradient.
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides& strides,
                  float* sums, ParallelFor parallel_for);

}  // namespace groupwise
