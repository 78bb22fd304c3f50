// The gradient of 3x3 weights of one channel. The outputs of three neighbouring columns slide along a band of rows, so that
// every input and every output is loaded once a band, and the nine sums stay in registers.
#pragma once
#include "kernels/narrow/layout.h"
#include "kernels/narrow/slide-inl.h"
#include "kernels/block_sum-inl.h"

namespace groupwise::GW_TARGET {

// Adds the products of row I of the inputs and row O of the outputs, with the taps of a row that Taps has a bit for.
template <int R, int S, int Taps, int I, int O, int N>
GW_INLINE void add_taps(Vec in, Vec (&out)[N], Vec (&sum)[9]) {
  constexpr int h = I - O * S;
  if constexpr (h >= 0 && h < 3) {
    // Of outputs two apart, taps 0 and 1 meet those of this column and tap 2 those of the column before.
    if constexpr ((Taps & 4) != 0) add_product(sum[3 * h + 2], in, out[(3 - S) * R + O]);
    if constexpr ((Taps & 2) != 0) add_product(sum[3 * h + 1], in, out[(S == 1 ? R : 0) + O]);
    if constexpr ((Taps & 1) != 0) add_product(sum[3 * h], in, out[O]);
  }
}
template <class Lanes, int R, int S, int Taps, int I, int N, int... O>
GW_INLINE void add_row_of_taps(const Real* x, Vec (&out)[N], Vec (&sum)[9], std::integer_sequence<int, O...>) {
  Vec in = Lanes::template take<0>(x);
  pin(in);
  (add_taps<R, S, Taps, I, O>(in, out, sum), ...);
}
template <class Lanes, int R, int S, int Taps, int N, int... I>
GW_INLINE void add_rows_of_taps(const Real* x, int64_t x_row, uint32_t there, Vec (&out)[N], Vec (&sum)[9],
                                std::integer_sequence<int, I...>) {
  ((there >> I & 1 ? add_row_of_taps<Lanes, R, S, Taps, I>(x + I * x_row, out, sum, std::make_integer_sequence<int, R>{})
                   : void()),
   ...);
}
template <class Lanes, int R, int S, int Taps, int N>
GW_INLINE void add_column_of_taps(const Real* x, int64_t x_row, uint32_t there, Vec (&out)[N], Vec (&sum)[9]) {
  add_rows_of_taps<Lanes, R, S, Taps>(x, x_row, there, out, sum, std::make_integer_sequence<int, (R - 1) * S + 3>{});
}

// Moves each gradient one column further, and loads those of a column, which are added to `all` too.
template <int R, int N, int... I>
GW_INLINE void move_outputs(Vec (&out)[N], std::integer_sequence<int, I...>) {
  ((out[N - 1 - I] = out[N - 1 - I - R]), ...);
}
template <int R, int N, int... O>
GW_INLINE void load_outputs(const Real* go, int64_t go_row, Vec (&out)[N], Vec& all, std::integer_sequence<int, O...>) {
  ((out[O] = load(go + O * go_row)), ...);
  if constexpr (R == 4) {
    all += (out[0] + out[1]) + (out[2] + out[3]);
  } else {
    ((all += out[O]), ...);
  }
}

// Adds the sums to those in memory, and begins them anew.
template <int... T>
GW_INLINE void end_sums(Real* to, int64_t w_row, int64_t w_column, Vec (&sum)[9], std::integer_sequence<int, T...>) {
  ((store(to + T / 3 * w_row + T % 3 * w_column, load(to + T / 3 * w_row + T % 3 * w_column) + sum[T]), sum[T] = Vec{}), ...);
}

// The most rows that slide together: the nine sums, and the gradients of three columns, fit the registers.
constexpr int kSlideGradRows = kManyRegisters ? 4 : 1;

// Bands of rows of outputs, one below the other. Steps are in floats.
struct Bands {
  int64_t x, go, count;
  int64_t at, at_band, at_row, height;  // the row of the first input in the image; steps to the next band and row; all rows
};

// Adds bands of R rows of outputs, which `s` calls y, to the sums and the totals of one vector after the other. The sums stay in
// registers from band to band.
template <class Lanes, int R, int S>
GW_NOINLINE void slide_sums(const Slide& s, const Bands& bands, const Real* x, const Real* go, Real* sums, Real* totals,
                            int64_t vectors) {
  // A sum ends after about so many products (lay_out).
  constexpr int kOlder = 3 - S, kSteps = kSummedOutputs / R, kInputRows = (R - 1) * S + 3;
  constexpr std::make_integer_sequence<int, R> rows;
  constexpr std::make_integer_sequence<int, kOlder * R> older;
  constexpr std::make_integer_sequence<int, 9> taps;
  constexpr std::make_integer_sequence<int, R * S> fresh;
  const int64_t x_row = s.x_row, x_column = s.x_column, go_row = s.y_row, go_column = s.y_column, count = s.count;
  const int64_t low = s.first, high = s.last, steps = count + kOlder;
  const int64_t from = std::min(steps, std::max<int64_t>(kOlder, ceil_div(low, S)));
  const int64_t to = std::max(from, std::min(count, high / S));
  Vec sum[9], out[(kOlder + 1) * R];
  for (int64_t v = 0; v < vectors; v++, x += Lanes::kStep, go += kLanes, sums += s.w_vector, totals += kLanes) {
    const bool ahead = s.ahead && v % kVectorsALine == 0;
    // The totals add runs too, as long as those of the sums.
    Vec all = Vec{};
    const auto end_run = [&] {
      store(totals, load(totals) + all);
      all = Vec{};
    };
    fill(Vec{}, sum, taps);
    const Real *x_band = x, *go_band = go;
    int64_t left = kSteps, at = bands.at;
    for (int64_t band = 0; band < bands.count; band++, x_band += bands.x, go_band += bands.go, at += bands.at_band) {
      const uint32_t there = rows_there(kInputRows, at, bands.at_row, bands.height);
      fill(Vec{}, out, std::make_integer_sequence<int, (kOlder + 1) * R>{});
      for (int64_t m = 0; m < steps; m++) {
        if (m == from) {
          const Real* in = x_band + S * m * x_column;
          const Real* grad = go_band + m * go_column;
          while (m < to) {
            const int64_t end = std::min(to, m + left);
            left -= end - m;
            for (; m < end; m++, in += S * x_column, grad += go_column) {
              move_outputs<R>(out, older);
              load_outputs<R>(grad, go_row, out, all, rows);
              add_column_of_taps<Lanes, R, S, S == 1 ? 7 : 5>(in, x_row, there, out, sum);
              if constexpr (S == 2) add_column_of_taps<Lanes, R, S, 2>(in + x_column, x_row, there, out, sum);
              if (ahead) {
                prefetch_rows(in + kInputRows * x_row, x_row, fresh);
                if constexpr (S == 2) prefetch_rows(in + kInputRows * x_row + x_column, x_row, fresh);
                prefetch_rows(grad + R * go_row, go_row, rows);
              }
            }
            if (left == 0) {
              end_sums(sums, s.w_row, s.w_column, sum, taps);
              end_run();
              left = kSteps;
            }
          }
          if (m == steps) break;
        }
        // Products with outputs that do not exist are left out, since an input may be infinite.
        move_outputs<R>(out, older);
        if (m < count) load_outputs<R>(go_band + m * go_column, go_row, out, all, rows);
        const int64_t j = S * m;
        const Real* in = x_band + j * x_column;
        if (j >= low && j < high) {
          const bool first = m < count, second = S == 1 && m >= 1 && m <= count, third = m >= kOlder;
          if (S == 1 && first && second && !third) {
            add_column_of_taps<Lanes, R, S, 3>(in, x_row, there, out, sum);
          } else if (S == 1 && !first && second && third) {
            add_column_of_taps<Lanes, R, S, 6>(in, x_row, there, out, sum);
          } else {
            if (first) add_column_of_taps<Lanes, R, S, 1>(in, x_row, there, out, sum);
            if (second) add_column_of_taps<Lanes, R, S, S == 1 ? 2 : 0>(in, x_row, there, out, sum);
            if (third) add_column_of_taps<Lanes, R, S, 4>(in, x_row, there, out, sum);
          }
        }
        if constexpr (S == 2)
          if (m < count && j + 1 >= low && j + 1 < high)
            add_column_of_taps<Lanes, R, S, 2>(in + x_column, x_row, there, out, sum);
      }
    }
    end_sums(sums, s.w_row, s.w_column, sum, taps);
    end_run();
  }
}

// Adds the outputs of an image block to the sums, and to the totals, of `vectors` vectors.
template <class Lanes>
inline void slide_block(const Reading& h, const Reading& w, const Real* x, const Real* go, const Packed& slots, Real* sums,
                        Real* totals, int64_t vectors, bool ahead) {
  // Outputs that are one tap apart share inputs, so a dilation is computed in as many turns.
  const int64_t stride = h.stride, by_h = stride == 1 ? h.dilation : 1, by_w = stride == 1 ? w.dilation : 1;
  // Adds `count` bands of `rows` rows each, `row` being the first.
  const auto add = [&](int64_t row, int64_t rows, int64_t count) {
    const int64_t next = rows * by_h;
    const Bands bands{next * h.x, next * h.go, count, h.first + row * stride, next * stride, by_h, h.size};
    for (int64_t start = 0; start < std::min(by_w, w.count); start++) {
      const int64_t column = w.first + start * stride;
      const auto before = [&](int64_t end) { return column >= end ? 0 : ceil_div(end - column, by_w); };
      const Slide s{h.x_tap,
                    w.x_tap,
                    before(0),
                    before(w.size),
                    by_h * h.go,
                    by_w * w.go,
                    (w.count - start - 1) / by_w + 1,
                    slots.row,
                    slots.column,
                    slots.vector,
                    0,
                    ahead,
                    {},
                    {}};
      const Real* from = x + row * h.x + start * w.x;
      const Real* grad = go + row * h.go + start * w.go;
      with_rows<kSlideGradRows>(rows, [&](auto together) {
        if (stride == 2) return slide_sums<Lanes, together, 2>(s, bands, from, grad, sums, totals, vectors);
        slide_sums<Lanes, together, 1>(s, bands, from, grad, sums, totals, vectors);
      });
    }
  };
  for (int64_t turn = 0; turn < std::min(by_h, h.count); turn++) {
    // All rows in as few bands as fit, which differ by one row at most: the larger ones come first.
    const int64_t all = (h.count - turn - 1) / by_h + 1, bands = ceil_div(all, kSlideGradRows), rows = ceil_div(all, bands);
    const int64_t larger = bands - (rows * bands - all);
    add(turn, rows, larger);
    if (larger < bands) add(turn + larger * rows * by_h, rows - 1, bands - larger);
  }
}

// Adds the totals of the vectors of `channels` channels, the last of which starts early rather than end late.
inline void add_totals(const Real* totals, int64_t channels, double* to) {
  Doubles sum[kLanes / 4];
  for (; channels >= kLanes; channels -= kLanes, totals += kLanes, to += kLanes) {
    std::memcpy(sum, to, sizeof sum);
    add_lanes(sum, load(totals));
    std::memcpy(to, sum, sizeof sum);
  }
  for (int64_t c = 0; c < channels; c++) to[c] += totals[kLanes - channels + c];
}

}  // namespace groupwise::GW_TARGET
