// Interleaves the channels of two tensors in channels_last, a0 b0 a1 b1 ...: what a concatenation and a channel shuffle of two
// groups compute.
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"

namespace groupwise {

// Rows of a and b have `channels` numbers: floats, or, if `low`, bfloat16. A row of the result has twice as many, or, with a
// `second`, each of its halves as many.
struct Interleave {
  int64_t rows, channels;
  bool low;
  const void *a, *b;
  void *first, *second;  // the second, or null
};

void interleave(const Interleave& work, const NormRun& run);

}  // namespace groupwise
