// Correlation of one input channel with vectors along the width: one column of taps after the other, whose weights then fit
// the registers beside the sums.
#pragma once
#include "planar_piece-inl.h"

namespace groupwise::GW_TARGET {

// R output rows, STRIDE input rows apart, of a kernel of K rows: R + K + 1 of AVX2's 16 registers. WHOLE: a row of outputs
// fills a vector. Per column of taps K broadcasts and (R - 1) * STRIDE + K unaligned loads serve R * K FMAs: 12 for 21 where
// R is 7 and K 3.
template <int K, int R, int STRIDE, bool WHOLE>
GW_NOINLINE void single_tile(const Piece& p, const float* x, const float* w, const float* bias, float* y, int64_t rows) {
  constexpr int kRows = (R - 1) * STRIDE + K;
  const int64_t x_row = p.sharing.pitch / STRIDE * p.row_floats, y_row = p.sharing.apart * p.y_row;
  const int64_t w_row = p.taps.w_row, w_column = p.taps.w_column, columns = p.taps.columns;
  const int32_t* column = p.taps.column;
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const auto sums = [&](int64_t at, auto&& keep) GW_LAMBDA {
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
      // From both ends to the middle: neighbouring rows add to the same sums, which would wait for each other.
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
    unroll<R>([&](auto r) GW_LAMBDA { keep(r, sum[r]); });
  };
  if constexpr (WHOLE) {
    const int64_t last = p.columns - kLanes;
    for (int64_t at = 0;; at = std::min(at + kLanes, last)) {
      sums(at, [&](int64_t r, Vec sum) GW_LAMBDA { store(y + at + r * y_row, sum); });
      if (at == last) return;
    }
  } else {
    // What a vector writes beyond its row is the next row's to write, where `rows` of them lie side by side.
    sums(0, [&](int64_t r, Vec sum) GW_LAMBDA {
      const bool inside = y_row == p.columns && (rows - r - 1) * y_row + p.columns >= kLanes;
      store_some(y + r * y_row, sum, inside ? kLanes : p.columns);
    });
  }
}

// Rows in sevens and fours; the last start early, as the last vectors do.
template <int K, int STRIDE, bool WHOLE>
inline void single_rows(const Piece& p, int64_t o) {
  const int64_t apart = p.sharing.apart;
  const float* w = p.w + o * p.taps.w_output;
  const float* bias = p.bias ? p.bias + o : nullptr;
  for (int64_t first = 0; first < apart; first++) {
    const int64_t rows = (p.rows - first - 1) / apart + 1;
    const float* x = p.x + first * p.stride * p.row_floats;
    float* y = p.y + o * p.y_channel + first * p.y_row;
    for (int64_t row = 0, take; row < rows; row += take) {
      take = rows >= 7 && rows - row > 4 ? 7 : 4;
      row = std::min(row, rows - take);
      (take == 7 ? single_tile<K, 7, STRIDE, WHOLE> : single_tile<K, 4, STRIDE, WHOLE>)(
          p, x + row * apart * p.stride * p.row_floats, w, bias, y + row * apart * p.y_row, rows - row);
    }
  }
}

// Whether these tiles take a piece: of at most 7 rows of taps (of stride 1, 1 to 5 and 7; of stride 2, 3, 5 and 7), 3 of them
// with 3 columns, and four rows of outputs or more.
inline bool single_fits(const Piece& p) {
  const int64_t taps = p.taps.rows;
  if (p.taps.channels != 1 || p.add || p.rows / p.sharing.apart < 4) return false;
  if (taps == 3 && p.taps.columns != 3) return false;
  if (p.stride == 1) return taps >= 1 && taps <= 7 && taps != 6;
  return p.stride == 2 && p.spacing == 1 && (taps == 3 || taps == 5 || taps == 7);
}

inline void run_single(const Piece& p, int64_t o) {
  const auto with_rows = [&]<int K>() {
    const bool whole = p.columns >= kLanes;
    if (p.stride == 1) return (whole ? single_rows<K, 1, true> : single_rows<K, 1, false>)(p, o);
    if constexpr (K % 2 && K > 1) (whole ? single_rows<K, 2, true> : single_rows<K, 2, false>)(p, o);
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
