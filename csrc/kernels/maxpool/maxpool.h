// The largest number of each window of an image in channels_last. NaN is larger than all, as it is in PyTorch.
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"

namespace groupwise {

struct MaxPool {
  int64_t samples, channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];
  bool low;  // bfloat16, and not floats
  const void* x;
  void* y;
};

void max_pool(const MaxPool& work, const NormRun& run);

}  // namespace groupwise
