// Correlation of few input channels with vectors along the width. It takes one column of taps after the other, whose weights fit
// the registers beside the sums.
#pragma once
#include "kernels/planar/task-inl.h"

namespace groupwise::GW_TARGET {

// Computes R output rows, STRIDE input rows apart, of a kernel of K rows, in R + K + 1 registers, of which AVX2 has 16. For each
// column of taps K broadcasts and (R - 1) * STRIDE + K unaligned loads serve R * K FMAs: 17 for 50 where R is 10 and K is 5.
template <int K, int R, int STRIDE>
GW_NOINLINE void single_tile(const PlanarTask& p, const Real* x, const Real* w, const Real* bias, Real* y, int64_t y_row) {
  constexpr int kRows = (R - 1) * STRIDE + K;
  const Taps& t = p.taps;
  const int64_t x_row = p.sharing.pitch / STRIDE * p.row_floats, w_row = t.w_row, w_column = t.w_column;
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const int64_t last = std::max<int64_t>(0, p.columns - kLanes), there = std::min<int64_t>(kLanes, p.columns);
  for (int64_t at = 0;; at = std::min(at + kLanes, last)) {
    Vec sum[R];
    unroll<R>([&](auto r) GW_LAMBDA { sum[r] = start; });
    const Real* x_channel = x + at;
    const Real* w_channel = w;
    for (int64_t c = t.channels; c > 0; c--, x_channel += t.x_channel, w_channel += t.w_channel) {
      const Real* weights = w_channel;
      each<K == 3 ? 3 : 0>(t.columns, [&](int64_t kw) GW_LAMBDA {
        Vec weight[K];
        unroll<K>([&](auto i) GW_LAMBDA {
          weight[i] = broadcast(weights[i * w_row]);
          pin(weight[i]);
        });
        const Real* from = x_channel + t.column[kw];
        // Rows in their order took 10 to 20 % less time than from both ends to the middle.
        unroll<kRows>([&](auto i) GW_LAMBDA {
          Vec in = load(from + i * x_row);
          pin(in);
          unroll<R>([&](auto r) GW_LAMBDA {
            constexpr int tap = i - STRIDE * r;
            if constexpr (tap >= 0 && tap < K) add_product(sum[r], in, weight[tap]);
          });
        });
        weights += w_column;
      });
    }
    if (!kMasks || there == kLanes) {
      unroll<R>([&](auto r) GW_LAMBDA { store(y + at + r * y_row, sum[r]); });
    } else {
      unroll<R>([&](auto r) GW_LAMBDA { store_some(y + at + r * y_row, sum[r], there); });
    }
    if (at == last) return;
  }
}

// Returns how many rows the next tile computes, of `left` that are left of `rows`.
inline int64_t single_rows_of(int64_t rows, int64_t left) {
  if (rows < 7 || left <= 4) return 4;
  // Two tiles of seven rows compute fewer rows twice than one of ten and one of seven.
  return rows < kSingleRows || left <= 7 || (left > kSingleRows && left <= 14) ? 7 : kSingleRows;
}

// Computes rows in tens, sevens and fours; the last tile starts early, as the last vector does. All output channels read the rows of
// a tile while they are in the L1 cache.
template <int K, int STRIDE>
inline void single_rows(const PlanarTask& p, int64_t from_output) {
  const int64_t apart = p.sharing.apart, y_row = apart * p.y_row;
  for (int64_t first = 0; first < apart; first++) {
    const int64_t rows = (p.rows - first - 1) / apart + 1;
    for (int64_t row = 0, take; row < rows; row += take) {
      take = single_rows_of(rows, rows - row);
      row = std::min(row, rows - take);
      const auto tile = take == kSingleRows ? single_tile<K, kSingleRows, STRIDE>
                        : take == 7         ? single_tile<K, 7, STRIDE>
                                            : single_tile<K, 4, STRIDE>;
      const Real* x = p.x + (first + row * apart) * p.stride * p.row_floats;
      for (int64_t o = from_output; o < p.outputs; o++) {
        const Real* w = p.w + o * p.taps.w_output;
        const Real* bias = p.bias ? p.bias + o : nullptr;
        Real* y = p.y + o * p.y_channel + (first + row * apart) * p.y_row;
        if (kMasks || p.columns >= kLanes) {
          tile(p, x, w, bias, y, y_row);
          continue;
        }
        // Without masks, rows that do not fill a vector are shortened afterwards: a check at every store cost up to 45 %.
        alignas(Vec) Real full[kSingleRows * kLanes];
        tile(p, x, w, bias, full, kLanes);
        for (int64_t r = 0; r < take; r++) copy(y + r * y_row, full + r * kLanes, p.columns);
      }
    }
  }
}

// Computes the output channels of a block from `from` on, where `takes_single` holds.
inline void run_single(const PlanarTask& p, int64_t from) {
  const auto with_rows = [&]<int K>() {
    if (p.stride == 1) return single_rows<K, 1>(p, from);
    if constexpr (K > 1) single_rows<K, 2>(p, from);
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
