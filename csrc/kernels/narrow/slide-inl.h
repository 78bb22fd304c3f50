// Correlation of one channel with 3x3 taps. The sums of three neighbouring columns slide along a band of rows: every input is
// loaded once a band, the weights stay in registers, and a row of any width leaves no sum unused.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/narrow/slides.h"
#include "kernels/narrow/task-inl.h"
#include "kernels/clamp-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/tiles.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Sums that a loop carries stay in registers only if no lambda takes their address where rows are skipped (GCC 12 kept all of
// them in memory, and a tile took four times as long). So the functions of this file unroll by packs.

// A row of outputs and the inputs that their taps meet. Steps are in floats.
struct Slide {
  int64_t x_row, x_column;
  int64_t first, last;  // the inputs of a row that lie in the image, counted from the first tap of the first output
  int64_t y_row, y_column, count;
  int64_t w_row, w_column, w_vector, bias_vector;
  bool ahead;  // the next band is prefetched, or the same of the next plane
  Clamp clamp;
  Planes planes;
};

// Tells whether sums go through planes: several of them, or one beside which the next are prefetched.
GW_INLINE bool is_deep(const Planes& planes) { return planes.count > 1 || planes.ahead; }
// Tells whether sums that slide prefetch, where those of one image do so if `ahead`.
GW_INLINE bool fetches(const Planes& planes, bool ahead) { return is_deep(planes) ? planes.ahead : ahead; }

// Tells whether the inputs of several planes meet the same sums. (Others add planes by tiles, since each more instance takes seconds
// to compile.)
template <class Lanes>
constexpr bool kSlidesPlanes = std::is_same_v<Lanes, LanesOfOne>;

// Prefetches a vector of the rows at p.
template <int... I>
GW_INLINE void prefetch_rows(const Real* p, int64_t row, std::integer_sequence<int, I...>) {
  (prefetch(p + I * row), ...);
}
// Does that in the planes that the next output plane reads first.
template <int... I>
GW_INLINE void prefetch_planes(const Planes& planes, const Real* p, int64_t row, std::integer_sequence<int, I...> rows) {
  p += planes.next;
  for (int64_t i = 0; i < planes.fresh; i++, p -= planes.x) prefetch_rows(p, row, rows);
}

// Adds the input of row I of a column to the outputs of row O.
template <int R, int S, bool Odd, int I, int O, int F, int N>
GW_INLINE void add_product_of(Vec in, Vec (&factor)[F], Vec (&sum)[N]) {
  constexpr int h = I - O * S;
  if constexpr (h >= 0 && 3 * h < F) {
    if constexpr (S == 2 && Odd) {
      add_product(sum[R + O], in, factor[3 * h + 1]);
    } else {
      if constexpr (S == 1) add_product(sum[2 * R + O], in, factor[3 * h + 2]);
      add_product(sum[R + O], in, factor[3 * h + (S == 1 ? 1 : 2)]);
      add_product(sum[O], in, factor[3 * h]);
    }
  }
}
template <class Lanes, int R, int S, bool Odd, int I, int F, int N, int... O>
GW_INLINE void add_input(const Real* x, Vec (&factor)[F], Vec (&sum)[N], std::integer_sequence<int, O...>) {
  Vec in = Lanes::template take<0>(x);
  pin(in);
  (add_product_of<R, S, Odd, I, O>(in, factor, sum), ...);
}

// Adds the inputs of one column in the rows that `there` tells. Odd columns meet the middle tap of
// outputs two apart, whose sums have moved by then.
template <class Lanes, int R, int S, bool Odd, int F, int N, int... I>
GW_INLINE void add_rows(const Real* x, int64_t x_row, uint32_t there, Vec (&factor)[F], Vec (&sum)[N],
                        std::integer_sequence<int, I...>) {
  ((there >> I & 1 ? add_input<Lanes, R, S, Odd, I>(x + I * x_row, factor, sum, std::make_integer_sequence<int, R>{}) : void()),
   ...);
}
template <class Lanes, int R, int S, bool Odd, int F, int N>
GW_INLINE void add_column(const Real* x, int64_t x_row, uint32_t there, Vec (&factor)[F], Vec (&sum)[N]) {
  add_rows<Lanes, R, S, Odd>(x, x_row, there, factor, sum, std::make_integer_sequence<int, (R - 1) * S + F / 3>{});
}

// Stores the R sums from First on, as the rows of one column.
template <int First, int N, int... O>
GW_INLINE void store_column(Real* y, int64_t y_row, bool clamps, const Clamp& clamp, Vec (&sum)[N],
                            std::integer_sequence<int, O...>) {
  if (clamps) {
    (store(y + O * y_row, clamped(sum[First + O], clamp)), ...);
  } else {
    (store(y + O * y_row, sum[First + O]), ...);
  }
}

// Moves each sum one column further, and begins those of a column.
template <int R, int N, int... I>
GW_INLINE void begin_outputs(Vec first, Vec (&sum)[N], std::integer_sequence<int, I...>) {
  ((sum[N - 1 - I] = N - 1 - I >= R ? sum[N - 1 - I >= R ? N - 1 - I - R : 0] : first), ...);
}

template <int N, int... I>
GW_INLINE void fill(Vec v, Vec (&sum)[N], std::integer_sequence<int, I...>) {
  ((sum[I] = v), ...);
}

// Loads taps T of three in each row.
template <int F, int... T>
GW_INLINE void load_factors(const Real* w, int64_t w_row, int64_t w_column, Vec (&factor)[F],
                            std::integer_sequence<int, T...>) {
  ((factor[T] = load(w + T / 3 * w_row + T % 3 * w_column), pin(factor[T])), ...);
}
// The taps that a column meets: all of them, and where outputs are two apart those in its turn.
template <int S, bool Odd>
using FactorsMet = std::conditional_t<
    S == 1, std::make_integer_sequence<int, 9>,
    std::conditional_t<Odd, std::integer_sequence<int, 1, 4, 7>, std::integer_sequence<int, 0, 2, 3, 5, 6, 8>>>;

// Adds the inputs of one column in all planes, whose weights begin at w, or those of one plane with the weights in `factor`.
template <class Lanes, int R, int S, bool Odd, bool Deep, int N>
GW_INLINE void add_columns(const Slide& s, const Real* x, uint32_t there, const Real* w, Vec (&factor)[9], Vec (&sum)[N]) {
  if constexpr (Deep) {
    for (int64_t left = s.planes.count; left > 0; left--, x += s.planes.x, w += s.planes.w) {
      Vec of_plane[9];
      load_factors(w, s.w_row, s.w_column, of_plane, FactorsMet<S, Odd>{});
      add_column<Lanes, R, S, Odd>(x, s.x_row, there, of_plane, sum);
    }
  } else {
    add_column<Lanes, R, S, Odd>(x, s.x_row, there, factor, sum);
  }
}

// Computes R rows of outputs that are S inputs apart, of one vector after the other. `some` has a bit for each row of inputs
// in the image, unless All of them are. Deep sums have several planes.
template <class Lanes, int R, int S, bool All, bool Deep>
GW_NOINLINE void slide(const Slide& s, const Real* x, Real* y, uint32_t some, const Real* w, const Real* bias,
                       int64_t vectors) {
  // Output m meets column S * m + t of the inputs by tap t, so step m begins output m and ends output m - kOlder.
  constexpr int kOlder = 3 - S, kSums = (kOlder + 1) * R;
  constexpr int kInputs = (R - 1) * S + 3;
  constexpr std::make_integer_sequence<int, R> rows;
  constexpr std::make_integer_sequence<int, kSums> sums;
  constexpr std::make_integer_sequence<int, R * S> fresh;
  constexpr std::make_integer_sequence<int, kInputs> inputs;
  const int64_t x_row = s.x_row, x_column = s.x_column, y_row = s.y_row, y_column = s.y_column, count = s.count;
  const int64_t low = s.first, high = s.last, steps = count + kOlder;
  const int64_t from = std::min(steps, std::max<int64_t>(kOlder, ceil_div(low, S)));
  const int64_t to = std::max(from, std::min(S == 1 ? steps : count, high / S));
  const uint32_t there = All ? ~0u : some;
  const bool clamps = s.clamp.bounds();
  const int64_t next_y = Deep ? s.planes.y : R * y_row;
  Vec factor[9], sum[kSums];
  for (int64_t v = 0; v < vectors; v++, x += Lanes::kStep, y += kLanes, w += s.w_vector, bias += s.bias_vector) {
    const bool ahead = s.ahead && v % kVectorsALine == 0;
    if constexpr (!Deep) load_factors(w, s.w_row, s.w_column, factor, std::make_integer_sequence<int, 9>{});
    fill(load(bias), sum, sums);
    for (int64_t m = 0; m < steps; m++) {
      if (m == from) {
        const Real* in = x + S * m * x_column;
        Real* out = y + (m - kOlder) * y_column;
        for (; m < to; m++, in += S * x_column, out += y_column) {
          add_columns<Lanes, R, S, false, Deep>(s, in, there, w, factor, sum);
          store_column<kSums - R>(out, y_row, clamps, s.clamp, sum, rows);
          begin_outputs<R>(load(bias), sum, sums);
          if constexpr (S == 2) add_columns<Lanes, R, S, true, Deep>(s, in + x_column, there, w, factor, sum);
          if (ahead) {
            if constexpr (Deep) {
              prefetch_planes(s.planes, in, x_row, inputs);
              if constexpr (S == 2) prefetch_planes(s.planes, in + x_column, x_row, inputs);
            } else {
              prefetch_rows(in + kInputs * x_row, x_row, fresh);
              if constexpr (S == 2) prefetch_rows(in + kInputs * x_row + x_column, x_row, fresh);
            }
            prefetch_rows(out + next_y, y_row, rows);
          }
        }
        if (m == steps) break;
      }
      const int64_t j = S * m;
      if (j >= low && j < high) add_columns<Lanes, R, S, false, Deep>(s, x + j * x_column, there, w, factor, sum);
      if (m >= kOlder) store_column<kSums - R>(y + (m - kOlder) * y_column, y_row, clamps, s.clamp, sum, rows);
      begin_outputs<R>(load(bias), sum, sums);
      if constexpr (S == 2)
        if (m < count && j + 1 >= low && j + 1 < high)
          add_columns<Lanes, R, S, true, Deep>(s, x + (j + 1) * x_column, there, w, factor, sum);
    }
  }
}

// Returns a bit for each of `rows` rows of inputs in an image of `height` rows; they are `spacing` apart, `at` being the first.
GW_INLINE uint32_t rows_there(int64_t rows, int64_t at, int64_t spacing, int64_t height) {
  if (at >= 0 && at + (rows - 1) * spacing < height) return (1u << rows) - 1;
  uint32_t there = 0;
  for (int64_t i = 0; i < rows; i++, at += spacing)
    if (at >= 0 && at < height) there |= 1u << i;
  return there;
}

// Calls f with a number of rows, at most Most, as a constant.
template <int Most, class F>
GW_INLINE void with_rows(int64_t rows, F&& f) {
  if constexpr (Most > 1)
    if (rows < Most) return with_rows<Most - 1>(rows, f);
  f(std::integral_constant<int, Most>{});
}

constexpr int kSlideRows = slide_rows(kLanes);

// Computes `rows` rows of outputs from `row` on, whose inputs are neighbours.
template <class Lanes>
inline void slide_band(const Correlation& c, const Image& image, const Packed& packed, const Vectors& v, const Outputs& out,
                       int64_t row, int64_t rows, bool ahead, const Clamp& clamp) {
  const Phase& s = c.w[0];
  const int64_t stride = s.stride, by_h = stride == 1 ? c.h.spacing : 1, by_w = stride == 1 ? s.spacing : 1;
  const int64_t columns = std::min(out.columns, s.out - out.column), at = out.at_row + row * stride;
  const int64_t inputs = (rows - 1) * stride + 3;
  const uint32_t there = rows_there(inputs, at, by_h, image.height);
  const Real* w = v.w + c.h.index * packed.row + s.index * packed.column;
  for (int64_t start = 0; start < std::min(by_w, columns); start++) {
    const int64_t column = out.at_column + start * stride + s.low;
    const auto before = [&](int64_t end) { return column >= end ? 0 : ceil_div(end - column, by_w); };
    const Slide k{by_h * image.row,
                  by_w * image.pixel,
                  before(image.left),
                  before(image.right),
                  by_h * out.y_row,
                  by_w * out.y_pixel,
                  (columns - start - 1) / by_w + 1,
                  c.h.index_step * packed.row,
                  s.index_step * packed.column,
                  packed.vector,
                  v.bias_vector,
                  fetches(c.planes, ahead),
                  clamp,
                  c.planes};
    const Real* x = image.x + at * image.row + column * image.pixel;
    Real* y = v.y + row * out.y_row + start * out.y_pixel;
    const auto run = [&](auto together) {
      const bool all = there == (1u << inputs) - 1;
      const auto tile = [&](auto deep) {
        return stride == 2 ? all ? slide<Lanes, together, 2, true, deep> : slide<Lanes, together, 2, false, deep>
               : all       ? slide<Lanes, together, 1, true, deep>
                           : slide<Lanes, together, 1, false, deep>;
      };
      if constexpr (kSlidesPlanes<Lanes>)
        if (is_deep(c.planes)) return tile(std::true_type{})(k, x, y, there, w, v.bias, v.count);
      tile(std::false_type{})(k, x, y, there, w, v.bias, v.count);
    };
    with_rows<kSlideRows>(rows, run);
  }
}

// Computes the outputs of a task for some vectors.
template <class Lanes>
inline void run_slides(const Correlation& c, const Image& image, const Packed& packed, const Vectors& v, const Outputs& out,
                       bool ahead, const Clamp& clamp) {
  // Rows that are one tap apart share inputs, so a dilation is computed in as many turns.
  const int64_t apart = c.h.stride == 1 ? c.h.spacing : 1;
  for (int64_t turn = 0; turn < std::min(apart, out.rows); turn++) {
    const int64_t all = (out.rows - turn - 1) / apart + 1;
    for (int64_t row = 0, rows; row < all; row += rows) {
      rows = ceil_div(all - row, ceil_div(all - row, kSlideRows));
      slide_band<Lanes>(c, image, packed, v, out, turn + row * apart, rows, ahead, clamp);
    }
  }
}

}  // namespace groupwise::GW_TARGET
