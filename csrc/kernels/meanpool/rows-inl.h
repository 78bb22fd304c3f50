// Means of a few vectors of channels, pixel by pixel.
#pragma once
#include <algorithm>

#include "kernels/meanpool/meanpool.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Writes the means of N vectors of channels, `width` lanes of each. Sums of a run are added up, so that each has few addends.
template <int N, class Width>
GW_INLINE void mean_of(const float* x, int64_t pixels, int64_t pixel, Width width, float* y) {
  constexpr int64_t kMeanRun = 64;
  Vec total[N] = {};
  for (int64_t first = 0; first < pixels; first += kMeanRun) {
    const int64_t last = std::min(pixels, first + kMeanRun);
    Vec sum[N] = {};
    for (int64_t i = first; i < last; i++)
      unroll<N>([&](auto k) GW_LAMBDA { sum[k] += load_some(x + i * pixel + k * kLanes, width); });
    unroll<N>([&](auto k) GW_LAMBDA { total[k] += sum[k]; });
  }
  const Vec count = broadcast(static_cast<float>(pixels));
  unroll<N>([&](auto k) GW_LAMBDA { store_some(y + k * kLanes, total[k] / count, width); });
}

// Runs tasks [begin, end), each of which is kMeanChannels channels of a sample, or those that are left.
void mean_pool_rows(const MeanPool& given, int64_t begin, int64_t end) {
  constexpr std::integral_constant<int64_t, kLanes> kWhole{};
  const MeanPool p = given;
  const int64_t chunks = ceil_div(p.channels, kMeanChannels);
  for (int64_t task = begin; task < end; task++) {
    const int64_t sample = task / chunks, last = std::min(p.channels, (task % chunks + 1) * kMeanChannels);
    const float* x = p.x + sample * p.pixels * p.channels;
    float* y = p.y + sample * p.channels;
    int64_t c = task % chunks * kMeanChannels;
    for (; c + 4 * kLanes <= last; c += 4 * kLanes) mean_of<4>(x + c, p.pixels, p.channels, kWhole, y + c);
    for (; c + kLanes <= last; c += kLanes) mean_of<1>(x + c, p.pixels, p.channels, kWhole, y + c);
    if (c < last) mean_of<1>(x + c, p.pixels, p.channels, last - c, y + c);
  }
}

}  // namespace groupwise::GW_TARGET
