// The gradient of depthwise weights whose rows have four taps or more. The gradients of outputs move along a row of inputs in
// registers, so that an input is loaded once for up to seven taps of its row.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/narrow/slide-inl.h"
#include "kernels/narrow/slide_weight-inl.h"
#include "kernels/narrow/task-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// The rows of taps that share gradients: their sums, the gradients of a row and an input fit 32 registers.
constexpr int rows_of_taps(int64_t taps) { return taps > 5 ? 3 : 5; }

// A row of outputs and the inputs of its taps. Step m brings output m and S columns of inputs, the first of which meets the first
// tap of that output. Distances are in floats.
struct TapRow {
  int64_t count;      // outputs
  int64_t low, high;  // the columns of inputs inside the image
  int64_t x_row, x_column, go_column;
};

// Adds the product of an input with the gradient in a slot, if there are such a sum and such a gradient.
template <bool All, bool Exists, int Sum, int Slot, int N, int M>
GW_INLINE void add_tap(Vec in, uint32_t there, Vec (&out)[N], Vec (&sum)[M]) {
  if constexpr (Exists)
    if (All || (there & 1)) add_product(sum[Sum], in, out[Slot]);
}

// Adds the products of an input of row I, in column P of a step. The output of tap P + A * S came A steps ago: `there` has a bit
// for each A, and slot Newest holds the gradient of this step.
template <int KW, int S, int P, int I, int Newest, bool All, int N, int M, int... A>
GW_INLINE void add_taps_of_row(const Real* x, uint32_t there, Vec (&out)[N], Vec (&sum)[M], std::integer_sequence<int, A...>) {
  Vec in = load(x);
  pin(in);
  (add_tap<All, (P + A * S < KW), I * KW + P + A * S, (Newest + A) % N>(in, there >> A, out, sum), ...);
}
// Does that for the rows that `rows` has a bit for.
template <int KW, int S, int P, int Newest, bool All, int N, int M, int... I>
GW_INLINE void add_inputs(const Real* x, int64_t x_row, uint32_t rows, uint32_t there, Vec (&out)[N], Vec (&sum)[M],
                          std::integer_sequence<int, I...>) {
  ((rows >> I & 1
        ? add_taps_of_row<KW, S, P, I, Newest, All>(x + I * x_row, there, out, sum, std::make_integer_sequence<int, N>{})
        : void()),
   ...);
}

// A step inside the image, whose gradient takes the slot of the oldest.
template <int KH, int KW, int S, int Slot, int N, int M, int... P>
GW_INLINE void whole_step(const TapRow& t, uint32_t rows, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                          std::integer_sequence<int, P...>) {
  out[Slot] = load(go);
  (add_inputs<KW, S, P, Slot, true>(x + P * t.x_column, t.x_row, rows, 0, out, sum, std::make_integer_sequence<int, KH>{}),
   ...);
}
// As many steps as there are slots, after which the newest gradient is in the first again.
template <int KH, int KW, int S, int N, int M, int... Step>
GW_INLINE void whole_steps(const TapRow& t, uint32_t rows, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                           std::integer_sequence<int, Step...>) {
  (whole_step<KH, KW, S, N - 1 - Step>(t, rows, x + Step * S * t.x_column, go + Step * t.go_column, out, sum,
                                       std::make_integer_sequence<int, S>{}),
   ...);
}

// Step m, which moves the gradients. Unless `All` are there, products with inputs and outputs that do not exist are left out, since
// the other factor may be infinite.
template <int KH, int KW, int S, bool All, int N, int M, int... P>
GW_INLINE void any_step(const TapRow& t, uint32_t rows, int64_t m, const Real* x, const Real* go, Vec (&out)[N], Vec (&sum)[M],
                        std::integer_sequence<int, P...>) {
  move_outputs<1>(out, std::make_integer_sequence<int, N - 1>{});
  if (All || m < t.count) out[0] = load(go + m * t.go_column);
  const int64_t oldest = std::min<int64_t>(N - 1, m), ended = std::max<int64_t>(0, m - t.count + 1);
  const uint32_t there = (2u << oldest) - (1u << ended);
  ((All || (S * m + P >= t.low && S * m + P < t.high)
        ? add_inputs<KW, S, P, 0, All>(x + (S * m + P) * t.x_column, t.x_row, rows, there, out, sum,
                                       std::make_integer_sequence<int, KH>{})
        : void()),
   ...);
}

template <int KW, int M, int... T>
GW_INLINE void add_to_sums(Real* to, const Packed& slots, Vec (&sum)[M], std::integer_sequence<int, T...>) {
  ((store(to + T / KW * slots.row + T % KW * slots.column, load(to + T / KW * slots.row + T % KW * slots.column) + sum[T])),
   ...);
}

// Sums KH x KW taps over the rows of outputs of an image block; `first` is where the first of them meets the first row of taps.
template <int KH, int KW, int S>
GW_NOINLINE void sum_tap_rows(const TapRow& row, const Reading& h, int64_t first, const Real* x, const Real* go,
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
  for (int64_t r = 0; r < h.count; r++, x += h.x, go += h.go) {
    const uint32_t rows = rows_there(KH, first + r * h.stride, h.dilation, h.size);
    if (rows == 0) continue;
    fill(Vec{}, out, window);
    int64_t m = std::max<int64_t>(0, t.low / S - N + 1);
    for (; m < from; m++) any_step<KH, KW, S, false>(t, rows, m, x, go, out, sum, columns);
    const Real* in = x + S * m * t.x_column;
    const Real* grad = go + m * t.go_column;
    for (; m + N <= to; m += N, in += S * N * t.x_column, grad += N * t.go_column)
      whole_steps<KH, KW, S>(t, rows, in, grad, out, sum, window);
    for (; m < to; m++) any_step<KH, KW, S, true>(t, rows, m, x, go, out, sum, columns);
    for (; m < steps; m++) any_step<KH, KW, S, false>(t, rows, m, x, go, out, sum, columns);
  }
  add_to_sums<KW>(sums, slots, sum, taps);
}

// Calls f with the number of taps of a row as a constant.
template <class F>
GW_INLINE void with_row_taps(int64_t taps, F&& f) {
  if (taps == 4) return f(std::integral_constant<int, 4>{});
  if (taps == 5) return f(std::integral_constant<int, 5>{});
  if (taps == 6) return f(std::integral_constant<int, 6>{});
  f(std::integral_constant<int, 7>{});
}

// Sums all taps of one vector of channels over an image block. (A template, so that only targets of many registers compile it.)
template <class Lanes>
inline void sum_rows_of_taps(const Problem& p, const Reading& h, const Reading& w, const Real* x, const Real* go,
                             const Packed& slots, Real* sums) {
  for (int64_t kw = 0, columns; kw < p.w.kernel; kw += columns) {
    columns = even_run(p.w.kernel - kw, kMostRowTaps);
    const int64_t column = w.first + kw;
    const TapRow row{w.count, std::max<int64_t>(0, -column), std::max<int64_t>(0, w.size - column), h.x_tap, w.x_tap, w.go};
    with_row_taps(columns, [&](auto taps) {
      for (int64_t kh = 0, rows; kh < p.h.kernel; kh += rows) {
        rows = even_run(p.h.kernel - kh, rows_of_taps(taps));
        const int64_t first = h.first + kh * h.dilation;
        const Real* from = x + kh * h.x_tap + kw * w.x_tap;
        Real* to = sums + kh * slots.row + kw * slots.column;
        with_rows<rows_of_taps(taps)>(rows, [&](auto together) {
          if (w.stride == 2) return sum_tap_rows<together, taps, 2>(row, h, first, from, go, slots, to);
          sum_tap_rows<together, taps, 1>(row, h, first, from, go, slots, to);
        });
      }
    });
  }
}

}  // namespace groupwise::GW_TARGET
