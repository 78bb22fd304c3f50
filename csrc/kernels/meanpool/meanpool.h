// The mean over the pixels of each channel of an image in channels_last.
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"

namespace groupwise {

struct MeanPool {
  int64_t samples, channels, pixels;
  const float* x;
  float* y;  // [sample][channel]
};

// The channels of a task: whole cache lines, in vectors of every width.
constexpr int64_t kMeanChannels = 64;

void mean_pool(const MeanPool& work, const NormRun& run);

}  // namespace groupwise
