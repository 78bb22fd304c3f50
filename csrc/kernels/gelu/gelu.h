// GELU by itself, of numbers that follow each other, and its gradient.
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"

namespace groupwise {

// y = gelu(x), or, where there is a gradient, y = grad * gelu'(x). y may be x or grad.
struct Gelu {
  int64_t count;
  bool tanh;  // the approximation by tanh
  const float* x;
  const float* grad;  // or null
  float* y;
};

// How sweeps are threaded: see NormRun.
void gelu(const Gelu& work, const NormRun& run);

}  // namespace groupwise
