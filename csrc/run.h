// Runs what was planned. Tensors are either contiguous along w (planar) or along c (channels last), with any strides else.
#pragma once

#include "plan.h"

namespace groupwise {

// In the sense of the forward convolution: the direction says which of x, w and y is written.
struct Tensors {
  float* x;
  float* y;
  float* w;
  const float* bias;  // of a forward, or of the grad_input that is a transposed convolution's forward; or null
};

void run(const Request& request, Kernel kernel, const Tensors& tensors, ParallelFor parallel_for);

// sums[c] = sum over n, h and w.
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides& strides,
                  float* sums, ParallelFor parallel_for);

}  // namespace groupwise
