// The gradient of depthwise weights whose rows have four taps or more. The gradients of outputs move along a row of inputs in registers,
// so that each input is loaded once for all taps of its row.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/narrow/slide-inl.h"
#include "kernels/narrow/slide_weight-inl.h"
#include "kernels/narrow/task-inl.h"
#include "kernels/tiles.h"

namespace groupwise::GW_TARGET {

// The rows of taps that share gradients: the sums, as many gradients as a row has taps, and an input fit 32 registers. In 16, they would
// be one or two rows (as fast as places of 3x3 taps by AVX2 on an AMD EPYC of Zen 4).
constexpr int rows_of_taps(int64_t taps) { return taps > 5 ? 3 : 5; }

// A row of outputs. Step m brings output m and S columns of inputs, the first of which meets the first tap of that output. Steps between
// numbers are in floats.
struct TapRow {
  int64_t count;      // outputs
  int64_t low, high;  // the columns of inputs inside the image
  int64_t x_row, x_column, go_column;
};

// Adds the product of an input with the gradient in a slot, if the sum exists and the gradient does.
template <bool All, bool Exists, int Sum, int Slot, int N, int M>
GW_INLINE void add_tap(Vec in, uint32_t there, Vec (&out)[N], Vec (&sum)[M]) {
  if constexpr (Exists)
    if (All || (there & 1)) add_product(sum[Sum], in, out[Slot]);
}

// Adds the products of an input of row I, and of column P of a step. The output of tap P + A * S came A steps ago; slot Newest holds that
// of this step, and `there` has a bit for each.
template <int KW, int S, int P, int I, int Newest, bool All, int N, int M, int... A>
GW_INLINE void add_taps_of_row(const Real* x, uint32_t there, Vec (&out)[N], Vec (&sum)[M], std::integer_sequence<int, A...>) {
  Vec in = load(x);
  pin(in);
  (add_tap<All, (P + A * S < KW), I * KW + P + A * S, (Newest + A) % N>(in, there >> A, out, sum), ...);
}
template <int KW, int S, int P, int Newest, bool All, int N, int M, int... I>
GW_INLINE void add_inputs(const Real* x, int64_t x_row, uint32_t there, Vec (&out)[N], Vec (&sum)[M],
                          std::integer_sequence<int, I...>) {
  (add_taps_of_row<KW, S, P, I, Newest, All>(x + I * x_row, there, out, sum, std::make_integer_sequence<int, N>{}), ...);
}

// A step inside the image, whose gradient takes the slot of the oldest.
template <int KH, int KW, int S, int Slot, int N, int M, int... P>
GW_INLINE void whole_step(const TapRow& t, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                          std::integer_sequence<int, P...>) {
  out[Slot] = load(go);
  (add_inputs<KW, S, P, Slot, true>(x + P * t.x_column, t.x_row, 0, out, sum, std::make_integer_sequence<int, KH>{}), ...);
}
// As many steps as there are slots, after which the newest gradient is in the first again.
template <int KH, int KW, int S, int N, int M, int... Step>
GW_INLINE void whole_steps(const TapRow& t, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                           std::integer_sequence<int, Step...>) {
  (whole_step<KH, KW, S, N - 1 - Step>(t, x + Step * S * t.x_column, go + Step * t.go_column, out, sum,
                                       std::make_integer_sequence<int, S>{}),
   ...);
}

// Any step: products with inputs and outputs that do not exist are left out, since the others may be infinite.
template <int KH, int KW, int S, int N, int M, int... P>
GW_INLINE void any_step(const TapRow& t, int64_t m, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                        std::integer_sequence<int, P...>) {
  move_outputs<1>(out, std::make_integer_sequence<int, N - 1>{});
  if (m < t.count) out[0] = load(go + m * t.go_column);
  const int64_t oldest = std::min<int64_t>(N - 1, m), ended = std::max<int64_t>(0, m - t.count + 1);
  const uint32_t there = (2u << oldest) - (1u << ended);
  ((S * m + P >= t.low && S * m + P < t.high ? add_inputs<KW, S, P, 0, false>(x + (S * m + P) * t.x_column, t.x_row, there, out,
                                                                              sum, std::make_integer_sequence<int, KH>{})
                                             : void()),
   ...);
}

template <int KW, int M, int... T>
GW_INLINE void add_to_sums(Real* to, const Packed& slots, Vec (&sum)[M], std::integer_sequence<int, T...>) {
  ((store(to + T / KW * slots.row + T % KW * slots.column, load(to + T / KW * slots.row + T % KW * slots.column) + sum[T])),
   ...);
}

// Sums KH x KW taps over `rows` rows of outputs, x_next and go_next floats apart.
template <int KH, int KW, int S>
GW_NOINLINE void sum_tap_rows(const TapRow& row, int64_t rows, int64_t x_next, int64_t go_next, const Real* x, const Real* go,
                              const Packed& slots, Real* sums) {
  constexpr int N = (KW - 1) / S + 1;
  constexpr std::make_integer_sequence<int, KH * KW> taps;
  constexpr std::make_integer_sequence<int, N> window;
  constexpr std::make_integer_sequence<int, S> columns;
  const TapRow t = row;
  const int64_t steps = std::min(t.count + N - 1, ceil_div(t.high, S));
  const int64_t from = std::min(steps, std::max<int64_t>(N - 1, ceil_div(t.low, S)));
  const int64_t to = std::min(t.count, t.high / S);
  Vec sum[KH * KW], out[N];
  fill(Vec{}, sum, taps);
  for (int64_t r = 0; r < rows; r++, x += x_next, go += go_next) {
    fill(Vec{}, out, window);
    int64_t m = std::max<int64_t>(0, t.low / S - N + 1);
    for (; m < from; m++) any_step<KH, KW, S>(t, m, x, go, out, sum, columns);
    const Real* in = x + S * m * t.x_column;
    const Real* grad = go + m * t.go_column;
    for (; m + N <= to; m += N, in += S * N * t.x_column, grad += N * t.go_column)
      whole_steps<KH, KW, S>(t, in, grad, out, sum, window);
    for (; m < steps; m++) any_step<KH, KW, S>(t, m, x, go, out, sum, columns);
  }
  add_to_sums<KW>(sums, slots, sum, taps);
}

// Calls f with a constant for each number of taps that a row may have in a place.
template <class F>
GW_INLINE void with_row_taps(int64_t taps, F&& f) {
  if (taps == 4) return f(std::integral_constant<int, 4>{});
  if (taps == 5) return f(std::integral_constant<int, 5>{});
  if (taps == 6) return f(std::integral_constant<int, 6>{});
  f(std::integral_constant<int, 7>{});
}

// Sums all taps of one vector of channels over an image block.
inline void sum_rows_of_taps(int64_t kernel_h, int64_t kernel_w, const Reading& h, const Reading& w, const Real* x,
                             const Real* go, const Packed& slots, Real* sums) {
  // Outputs that are one tap apart share inputs, so a dilation is computed in as many turns.
  const int64_t by_w = w.stride == 1 ? w.dilation : 1;
  const auto inside = [&](int64_t r, int64_t tap) {
    const int64_t at = h.first + r * h.stride + tap * h.dilation;
    return at >= 0 && at < h.size;
  };
  // Rows of outputs [r, end) meet taps [first, last) of rows of a place.
  const auto add = [&](int64_t r, int64_t end, int64_t first, int64_t last, int64_t kw, int64_t columns, int64_t start) {
    const int64_t column = w.first + kw * w.dilation + start * w.stride;
    const auto before = [&](int64_t edge) { return column >= edge ? 0 : ceil_div(edge - column, by_w); };
    const TapRow row{(w.count - start - 1) / by_w + 1, before(0), before(w.size), h.x_tap, w.x_tap, by_w * w.go};
    const Real* from = x + r * h.x + first * h.x_tap + start * w.x + kw * w.x_tap;
    const Real* grad = go + r * h.go + start * w.go;
    Real* to = sums + first * slots.row + kw * slots.column;
    with_row_taps(columns, [&](auto taps) {
      with_rows<rows_of_taps(taps)>(last - first, [&](auto together) {
        if (w.stride == 2) return sum_tap_rows<together, taps, 2>(row, end - r, h.x, h.go, from, grad, slots, to);
        sum_tap_rows<together, taps, 1>(row, end - r, h.x, h.go, from, grad, slots, to);
      });
    });
  };
  for (int64_t kw = 0, columns; kw < kernel_w; kw += columns) {
    columns = even_run(kernel_w - kw, kMostRowTaps);
    for (int64_t kh = 0, rows; kh < kernel_h; kh += rows) {
      rows = even_run(kernel_h - kh, rows_of_taps(columns));
      for (int64_t r = 0, end; r < h.count; r = end) {
        int64_t first = kh, last = kh + rows;
        while (first < last && !inside(r, first)) first++;
        while (first < last && !inside(r, last - 1)) last--;
        // Rows that meet the same taps are summed in one go.
        const auto same = [&](int64_t other) {
          for (int64_t tap = kh; tap < kh + rows; tap++)
            if (inside(other, tap) != (tap >= first && tap < last)) return false;
          return true;
        };
        for (end = r + 1; end < h.count && same(end);) end++;
        if (first == last) continue;
        for (int64_t start = 0; start < std::min(by_w, w.count); start++) add(r, end, first, last, kw, columns, start);
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
