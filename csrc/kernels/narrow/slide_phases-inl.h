// The gradient of the input of one channel with 3x3 taps two apart. Outputs of both phases of the width slide along a band of
// rows together: a column of inputs is loaded once, and meets one tap of one phase and both taps of the other.
#pragma once
#include "kernels/narrow/slide-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// Where a phase writes: output i meets the inputs from column i + low on.
struct SlidePhase {
  Real* y;
  int64_t low, count;
};

// Moves the sums of two taps one column further, and begins those of a column.
template <int R, int N, int... O>
GW_INLINE void begin_pairs(Vec first, Vec (&sum)[N], std::integer_sequence<int, O...>) {
  ((sum[2 * R + O] = sum[O], sum[R + O] = first, sum[O] = first), ...);
}

// Loads rows of three taps, the places of which are in `w`.
template <int F, int... T>
GW_INLINE void load_factors_of(const Real* const (&w)[3], int64_t at, int64_t w_row, Vec (&factor)[F],
                               std::integer_sequence<int, T...>) {
  ((factor[T] = load(w[T % 3] + at + T / 3 * w_row), pin(factor[T])), ...);
}

// Adds the inputs of one column in all planes, whose weights are at `at` of the taps, or of one with the weights in `factor`.
template <int R, int K, bool Deep, int N>
GW_INLINE void add_paired_columns(const Slide& s, const Real* x, uint32_t there, const Real* const (&w)[3], int64_t at,
                                  Vec (&factor)[3 * K], Vec (&sum)[N]) {
  if constexpr (Deep) {
    for (int64_t left = s.planes.count; left > 0; left--, x += s.planes.x, at += s.planes.w) {
      Vec of_plane[3 * K];
      load_factors_of(w, at, s.w_row, of_plane, std::make_integer_sequence<int, 3 * K>{});
      add_column<LanesOfOne, R, 1, false>(x, s.x_row, there, of_plane, sum);
    }
  } else {
    add_column<LanesOfOne, R, 1, false>(x, s.x_row, there, factor, sum);
  }
}

// Computes R rows of outputs by K rows of taps, of one vector after the other. `s` counts inputs from the image's first column.
// The taps are those of `pair` and, between them, that of `single`. Deep sums have several planes.
template <int R, int K, bool Deep>
GW_NOINLINE void slide_phases(const Slide& s, const Real* x, const SlidePhase& single, const SlidePhase& pair, uint32_t there,
                              const Real* const (&w)[3], const Real* bias, int64_t vectors) {
  constexpr std::make_integer_sequence<int, R> rows;
  constexpr std::make_integer_sequence<int, 3 * R> sums;
  constexpr std::make_integer_sequence<int, R + K - 1> inputs;
  const int64_t x_row = s.x_row, x_column = s.x_column, y_row = s.y_row, y_column = s.y_column;
  const int64_t begin = std::min(single.low, pair.low);
  const int64_t end = std::max(single.low + single.count, pair.low + pair.count + 1);
  // Between these every column exists and ends an output of both phases.
  const int64_t from = std::max(begin, std::min(end, std::max({s.first, single.low, pair.low + 1})));
  const int64_t to = std::max(from, std::min({end, s.last, single.low + single.count, pair.low + pair.count + 1}));
  const bool clamps = s.clamp.bounds();
  const int64_t next_y = Deep ? s.planes.y : R * y_row;
  Vec factor[3 * K], sum[3 * R];
  for (int64_t v = 0; v < vectors; v++, x += kLanes, bias += s.bias_vector) {
    const int64_t at = v * s.w_vector;
    if constexpr (!Deep) load_factors_of(w, at, s.w_row, factor, std::make_integer_sequence<int, 3 * K>{});
    const bool ahead = s.ahead && v % kVectorsALine == 0;
    Real* const y_single = single.y + v * kLanes;
    Real* const y_pair = pair.y + v * kLanes;
    fill(load(bias), sum, sums);
    for (int64_t j = begin; j < end; j++) {
      if (j == from) {
        const Real* in = x + j * x_column;
        Real* one = y_single + (j - single.low) * y_column;
        Real* two = y_pair + (j - pair.low - 1) * y_column;
        for (; j < to; j++, in += x_column, one += y_column, two += y_column) {
          add_paired_columns<R, K, Deep>(s, in, there, w, at, factor, sum);
          store_column<2 * R>(two, y_row, clamps, s.clamp, sum, rows);
          store_column<R>(one, y_row, clamps, s.clamp, sum, rows);
          begin_pairs<R>(load(bias), sum, rows);
          if (ahead) {
            if constexpr (Deep) {
              prefetch_planes(s.planes, in, x_row, inputs);
            } else {
              prefetch_rows(in + (R + K - 1) * x_row, x_row, rows);
            }
            prefetch_rows(one + next_y, y_row, rows);
            prefetch_rows(two + next_y, y_row, rows);
          }
        }
        if (j == end) break;
      }
      if (j >= s.first && j < s.last) add_paired_columns<R, K, Deep>(s, x + j * x_column, there, w, at, factor, sum);
      const int64_t one = j - single.low, two = j - pair.low - 1;
      if (two >= 0 && two < pair.count) store_column<2 * R>(y_pair + two * y_column, y_row, clamps, s.clamp, sum, rows);
      if (one >= 0 && one < single.count) store_column<R>(y_single + one * y_column, y_row, clamps, s.clamp, sum, rows);
      begin_pairs<R>(load(bias), sum, rows);
    }
  }
}

// Computes the outputs of a task for some vectors.
inline void run_phases(const Correlation& c, const Image& image, const Packed& packed, const Vectors& v, const Outputs& out,
                       bool ahead, const Clamp& clamp) {
  const Phase &single = c.w[0].taps == 1 ? c.w[0] : c.w[1], &pair = c.w[0].taps == 1 ? c.w[1] : c.w[0];
  const Real* w = v.w + c.h.index * packed.row;
  const Real* const taps[3] = {w + pair.index * packed.column, w + single.index * packed.column,
                               w + (pair.index + pair.index_step) * packed.column};
  const Slide s{image.row,
                image.pixel,
                image.left,
                image.right,
                out.y_row,
                single.step * out.y_pixel,
                0,
                c.h.index_step * packed.row,
                0,
                packed.vector,
                v.bias_vector,
                fetches(c.planes, ahead),
                clamp,
                c.planes};
  for (int64_t row = 0, rows; row < out.rows; row += rows) {
    rows = ceil_div(out.rows - row, ceil_div(out.rows - row, kSlideRows));
    const uint32_t there = rows_there(rows - 1 + c.h.taps, out.at_row + row, 1, image.height);
    const auto phase = [&](const Phase& p) {
      return SlidePhase{v.y + row * out.y_row + p.first * out.y_pixel, out.at_column + p.low,
                        std::min(out.columns, p.out - out.column)};
    };
    const Real* x = image.x + (out.at_row + row) * image.row;
    with_rows<kSlideRows>(rows, [&](auto together) {
      const auto run = is_deep(c.planes) ? c.h.taps == 2 ? slide_phases<together, 2, true> : slide_phases<together, 1, true>
                       : c.h.taps == 2   ? slide_phases<together, 2, false>
                                         : slide_phases<together, 1, false>;
      run(s, x, phase(single), phase(pair), there, taps, v.bias, v.count);
    });
  }
}

}  // namespace groupwise::GW_TARGET
