// The gradient of a bias: the sum of a channel. It is in double, since sums that cancel would leave only a float's rounding.
#pragma once
#include "kernels/layout.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Converts four floats at a time, which is one instruction. GCC 12 converts eight one by one (144 channels 56x56, one thread:
// 0.9 ms instead of 0.05).
typedef double Doubles __attribute__((vector_size(4 * 8)));
GW_INLINE void add_four(Doubles& sum, const float* p) { sum += __builtin_convertvector(load_four(p), Doubles); }

// Adds the sum over n of from[n * step + i] to total[i], for i in [0, 4 * N).
template <int N>
GW_INLINE void add_columns(const float* from, int64_t step, int64_t n, double* total) {
  Doubles sum[N] = {};
  for (int64_t i = 0; i < n; i++, from += step) unroll<N>([&](auto k) GW_LAMBDA { add_four(sum[k], from + 4 * k); });
  unroll<N>([&](auto k) GW_LAMBDA {
    Doubles all;
    std::memcpy(&all, total + 4 * k, sizeof all);
    all += sum[k];
    std::memcpy(total + 4 * k, &all, sizeof all);
  });
}

// Runs tasks [begin, end), each of which sums kChannelBlock channels.
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides& s, float* sums,
                  int64_t begin, int64_t end) {
  static_assert(kChannelBlock == 16);
  // Rows that follow each other without a gap are one row.
  if (s.h == w * s.w) w *= h, h = 1;
  for (int64_t task = begin; task < end; task++) {
    const int64_t first = task * kChannelBlock, count = std::min(kChannelBlock, channels - first);
    double total[kChannelBlock] = {};
    for (int64_t n = 0; n < batch; n++) {
      for (int64_t y = 0; y < h; y++) {
        const float* row = tensor + n * s.n + first * s.c + y * s.h;
        if (s.c == 1 && s.w != 1) {
          if (count == kChannelBlock) {
            add_columns<4>(row, s.w, w, total);
            continue;
          }
          int64_t c = 0;
          for (; c + 4 <= count; c += 4) add_columns<1>(row + c, s.w, w, total + c);
          for (; c < count; c++)
            for (int64_t x = 0; x < w; x++) total[c] += row[x * s.w + c];
          continue;
        }
        for (int64_t c = 0; c < count; c++) {
          const float* from = row + c * s.c;
          double parts[16] = {};
          add_columns<4>(from, 16, w / 16, parts);
          add_columns<1>(from + w / 16 * 16, 4, w % 16 / 4, parts);
          for (int64_t x = w / 4 * 4; x < w; x++) total[c] += from[x];
          for (const double part : parts) total[c] += part;
        }
      }
    }
    for (int64_t c = 0; c < count; c++) sums[first + c] = static_cast<float>(total[c]);
  }
}

}  // namespace groupwise::GW_TARGET
