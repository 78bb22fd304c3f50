// The sums of the channels of a block of positions. Short runs are summed in float, and the runs in double: long sums that cancel
// would leave only a float's rounding.
#pragma once
#include "kernels/layout.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// The vectors of a run, which four sums share. A conversion to double takes longer than an addition, and one for each value took
// as long as the gradient of a depthwise weight takes.
constexpr int64_t kSummedRun = 32;

// Converts four floats at a time, which is one instruction. GCC 12 converts eight one by one (144 channels 56x56, one thread:
// 0.9 ms instead of 0.05).
typedef double Doubles __attribute__((vector_size(4 * 8)));
GW_INLINE void add_four(Doubles& sum, Four v) { sum += __builtin_convertvector(v, Doubles); }

template <class V, int N>
GW_INLINE void add_lanes(Doubles (&sum)[N], V v) {
  static_assert(sizeof(V) == sizeof(Four) * N);
  alignas(V) Real lanes[4 * N];
  std::memcpy(lanes, &v, sizeof v);
  unroll<N>([&](auto k) GW_LAMBDA { add_four(sum[k], load_four(lanes + 4 * k)); });
}

// Adds the vectors at from + n * step for n in [0, count), in runs.
template <class V, int N, class Load>
GW_INLINE void add_runs(Doubles (&total)[N], const Real* from, int64_t step, int64_t count, Load&& load_one) {
  for (int64_t left = count; left > 0; left -= kSummedRun) {
    V sum[4] = {};
    int64_t n = std::min(left, kSummedRun);
    for (; n >= 4; n -= 4, from += 4 * step) unroll<4>([&](auto k) GW_LAMBDA { sum[k] += load_one(from + k * step); });
    for (; n > 0; n--, from += step) sum[0] += load_one(from);
    add_lanes(total, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

// Adds the sums of channels that are neighbours in memory, as many as V has lanes.
template <class V, class Load>
GW_INLINE void add_pixels(const Real* from, const Strides& s, int64_t rows, int64_t columns, double* total, Load&& load_one) {
  Doubles sum[sizeof(V) / sizeof(Four)];
  std::memcpy(sum, total, sizeof sum);
  for (int64_t r = 0; r < rows; r++) add_runs<V>(sum, from + r * s.h, s.w, columns, load_one);
  std::memcpy(total, sum, sizeof sum);
}

// Adds to total[c] the sum over a block of rows x columns of each of `channels` channels.
inline void add_block(const Real* from, const Strides& s, int64_t rows, int64_t columns, int64_t channels, double* total) {
  // Rows that follow each other without a gap are one row.
  if (s.h == columns * s.w) columns *= rows, rows = 1;
  if (s.c == 1 && s.w != 1) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes)
      add_pixels<Vec>(from + c, s, rows, columns, total + c, [](const Real* p) GW_LAMBDA { return load(p); });
    for (; c + 4 <= channels; c += 4)
      add_pixels<Four>(from + c, s, rows, columns, total + c, [](const Real* p) GW_LAMBDA { return load_four(p); });
    for (; c < channels; c++)
      for (int64_t r = 0; r < rows; r++)
        for (int64_t x = 0; x < columns; x++) total[c] += from[c + r * s.h + x * s.w];
    return;
  }
  for (int64_t c = 0; c < channels; c++) {
    Doubles lanes[kLanes / 4] = {}, four = {};
    double ones = 0;
    for (int64_t r = 0; r < rows; r++) {
      const Real* row = from + c * s.c + r * s.h;
      const Real* end = row + columns;
      if constexpr (kMasks) {
        add_runs<Vec>(lanes, row, kLanes, ceil_div(columns, kLanes),
                      [&](const Real* p) GW_LAMBDA { return end - p >= kLanes ? load(p) : load_some(p, end - p); });
        continue;
      }
      add_runs<Vec>(lanes, row, kLanes, columns / kLanes, [](const Real* p) GW_LAMBDA { return load(p); });
      for (row += columns / kLanes * kLanes; row + 4 <= end; row += 4) add_four(four, load_four(row));
      for (; row < end; row++) ones += *row;
    }
    for (const Doubles& part : lanes) four += part;
    total[c] += ((four[0] + four[1]) + (four[2] + four[3])) + ones;
  }
}

}  // namespace groupwise::GW_TARGET
