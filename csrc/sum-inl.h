// The gradient of a bias: the sum of a channel, in double, as what cancels out would leave a float's rounding alone.
#pragma once
#include "layout.h"
#include "simd.h"

namespace groupwise::GW_TARGET {

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

// Tasks [begin, end): blocks of kChannelBlock channels.
inline void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides& s,
                         float* sums, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; task++) {
    const int64_t first = task * kChannelBlock, count = std::min(kChannelBlock, channels - first);
    double total[kChannelBlock] = {};
    for (int64_t n = 0; n < batch; n++) {
      for (int64_t y = 0; y < h; y++) {
        const float* row = tensor + n * s.n + first * s.c + y * s.h;
        if (s.c == 1 && s.w != 1) {
          for (int64_t v = 0; v < count; v += kLanes) {
            const int64_t lanes = std::min<int64_t>(kLanes, count - v);
            Doubles sum{};
            for (int64_t x = 0; x < w; x++) sum += __builtin_convertvector(load_some(row + x * s.w + v, lanes), Doubles);
            for (int64_t i = 0; i < lanes; i++) total[v + i] += sum[i];
          }
          continue;
        }
        for (int64_t c = 0; c < count; c++) {
          const float* from = row + c * s.c;
          Doubles sum{};
          int64_t x = 0;
          for (; x + kLanes <= w; x += kLanes) sum += __builtin_convertvector(load(from + x), Doubles);
          for (; x < w; x++) total[c] += from[x];
          for (int64_t i = 0; i < kLanes; i++) total[c] += sum[i];
        }
      }
    }
    for (int64_t c = 0; c < count; c++) sums[first + c] = static_cast<float>(total[c]);
  }
}

}  // namespace groupwise::GW_TARGET
