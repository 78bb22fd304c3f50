// Correlation of one input channel with vectors along the width. It takes one column of taps after the other, whose weights fit
// the registers beside the sums.
#pragma once
#include "kernels/planar/task-inl.h"

namespace groupwise::GW_TARGET {

// Computes R output rows, STRIDE input rows apart, of a kernel of K rows, in R + K + 1 of AVX2's 16 registers. For each column
// of taps K broadcasts and (R - 1) * STRIDE + K unaligned loads serve R * K FMAs: 12 for 21 where R is 7 and K is 3.
template <int K, int R, int STRIDE>
GW_NOINLINE void single_tile(const PlanarTask& p, const float* x, const float* w, const float* bias, float* y, int64_t y_row) {
  constexpr int kRows = (R - 1) * STRIDE + K;
  const int64_t x_row = p.sharing.pitch / STRIDE * p.row_floats;
  const int64_t w_row = p.taps.w_row, w_column = p.taps.w_column, columns = p.taps.columns;
  const int32_t* column = p.taps.column;
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const int64_t last = std::max<int64_t>(0, p.columns - kLanes), there = std::min<int64_t>(kLanes, p.columns);
  for (int64_t at = 0;; at = std::min(at + kLanes, last)) {
    Vec sum[R];
    unroll<R>([&](auto r) GW_LAMBDA { sum[r] = start; });
    const float* weights = w;
    each<K == 3 ? 3 : 0>(columns, [&](int64_t kw) GW_LAMBDA {
      Vec weight[K];
      unroll<K>([&](auto i) GW_LAMBDA {
        weight[i] = broadcast(weights[i * w_row]);
        pin(weight[i]);
      });
      const float* from = x + at + column[kw];
      // Rows go from both ends to the middle: neighbours add to the same sums, and would wait for each other.
      unroll<kRows>([&](auto n) GW_LAMBDA {
        constexpr int i = n % 2 ? kRows - 1 - n / 2 : n / 2;
        Vec in = load(from + i * x_row);
        pin(in);
        unroll<R>([&](auto r) GW_LAMBDA {
          constexpr int tap = i - STRIDE * r;
          if constexpr (tap >= 0 && tap < K) add_product(sum[r], in, weight[tap]);
        });
      });
      weights += w_column;
    });
    if (!kMasks || there == kLanes) {
      unroll<R>([&](auto r) GW_LAMBDA { store(y + at + r * y_row, sum[r]); });
    } else {
      unroll<R>([&](auto r) GW_LAMBDA { store_some(y + at + r * y_row, sum[r], there); });
    }
    if (at == last) return;
  }
}

// Computes rows in sevens and fours; the last tile starts early, as the last vector does.
template <int K, int STRIDE>
inline void single_rows(const PlanarTask& p, int64_t o) {
  const int64_t apart = p.sharing.apart, y_row = apart * p.y_row;
  const float* w = p.w + o * p.taps.w_output;
  const float* bias = p.bias ? p.bias + o : nullptr;
  for (int64_t first = 0; first < apart; first++) {
    const int64_t rows = (p.rows - first - 1) / apart + 1;
    const float* x = p.x + first * p.stride * p.row_floats;
    float* y = p.y + o * p.y_channel + first * p.y_row;
    for (int64_t row = 0, take; row < rows; row += take) {
      take = rows >= kSingleRows && rows - row > 4 ? kSingleRows : 4;
      row = std::min(row, rows - take);
      const auto tile = take == kSingleRows ? single_tile<K, kSingleRows, STRIDE> : single_tile<K, 4, STRIDE>;
      const float* from = x + row * apart * p.stride * p.row_floats;
      if (kMasks || p.columns >= kLanes) {
        tile(p, from, w, bias, y + row * y_row, y_row);
        continue;
      }
      // Without masks, rows that do not fill a vector are shortened afterwards: a check at every store cost up to 45 %.
      alignas(kLanes * 4) float full[kSingleRows * kLanes];
      tile(p, from, w, bias, full, kLanes);
      for (int64_t r = 0; r < take; r++) copy(y + (row + r) * y_row, full + r * kLanes, p.columns);
    }
  }
}

// Computes output channel o of a block for which `takes_single` holds.
inline void run_single(const PlanarTask& p, int64_t o) {
  const auto with_rows = [&]<int K>() {
    if (p.stride == 1) return single_rows<K, 1>(p, o);
    if constexpr (K % 2 && K > 1) single_rows<K, 2>(p, o);
  };
  switch (p.taps.rows) {
    case 1: return with_rows.template operator()<1>();
    case 2: return with_rows.template operator()<2>();
    case 3: return with_rows.template operator()<3>();
    case 4: return with_rows.template operator()<4>();
    case 5: return with_rows.template operator()<5>();
    default: return with_rows.template operator()<7>();
  }
}

}  // namespace groupwise::GW_TARGET
