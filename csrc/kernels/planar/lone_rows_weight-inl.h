// The gradient of a row of taps, from rows that are read where they are.
#pragma once
#include "kernels/planar/add_sums-inl.h"
#include "kernels/planar/lone_rows-inl.h"

namespace groupwise::GW_TARGET {

// Adds the sum over the outputs of `rows` rows, x_row and go_row numbers apart, of their gradient times what each of K taps reads.
template <int K, int S>
GW_NOINLINE void few_taps_sums(const LoneRow& t, int64_t rows, const Real* x, int64_t x_row, const Real* go, int64_t go_row,
                               Real* sums) {
  // One vector's sums would wait for those of the vector before.
  constexpr int V = 2 * K + 4 <= kRegisters ? 2 : 1;
  Vec sum[V][K];
  const auto clear = [&]() GW_LAMBDA {
    unroll<V>([&](auto v) GW_LAMBDA { unroll<K>([&](auto k) GW_LAMBDA { sum[v][k] = Vec{}; }); });
  };
  const auto flush = [&]() GW_LAMBDA {
    Vec all[1][K];
    unroll<K>([&](auto k) GW_LAMBDA { all[0][k] = V == 2 ? sum[0][k] + sum[V - 1][k] : sum[0][k]; });
    add_sums(all, sums, K);
  };
  clear();
  const int64_t vectors = ceil_div(t.last - t.first, kLanes);
  for (int64_t r = 0, summed = 0; r < rows; r++, x += x_row, go += go_row) {
    if (summed + vectors > kRun) {
      flush();
      clear();
      summed = 0;
    }
    summed += vectors;
    const Real* from = x + t.low;
    in_row<K, S, V>(
        t,
        [&](int64_t i, auto several) GW_LAMBDA {
          if (t.ahead) {
            prefetch_numbers<S * several * kLanes>(from + S * i + kAhead);
            prefetch_numbers<several * kLanes>(go + i + kAhead);
          }
          unroll<several>([&](auto v) GW_LAMBDA {
            Vec out = load(go + i + v * kLanes);
            pin(out);
            const Real* at = from + S * (i + v * kLanes);
            each_tap<K, S>([&](auto k, int j) GW_LAMBDA { return load(at + k * t.spacing + j); },
                           [&](auto k, Vec in) GW_LAMBDA { add_product(sum[v][k], in, out); });
          });
        },
        [&](int64_t i, int64_t count) GW_LAMBDA {
          const Vec out = load_some(go + i, count);
          const int64_t first = S * i + t.low;
          each_tap<K, S>(
              [&](auto k, int j) GW_LAMBDA {
                const int64_t at = first + k * t.spacing + j;
                // What lanes of no output would read may be NaN.
                return load_between(x + at, -at, std::min(S * count - j, t.in - at));
              },
              [&](auto k, Vec in) GW_LAMBDA { add_product(sum[0][k], in, out); });
        });
  }
  flush();
}

// The same for N of many neighbouring taps, from `tap` on, and, if `Both`, for N taps that are a vector further. Each vector of inputs is
// loaded once, and shifted from tap to tap; a shift serves two taps that are a vector apart, each by another gradient. `sums` has those of
// the first N taps, then of the others.
template <int N, int Both>
GW_NOINLINE void shifted_sums(const LoneRow& t, int64_t tap, int64_t rows, const Real* x, int64_t x_row, const Real* go,
                              int64_t go_row, Real* sums) {
  Vec sum[1 + Both][N] = {};
  const int64_t vectors = ceil_div(t.last - t.first, kLanes), end = t.last - (vectors - 1) * kLanes - t.first;
  for (int64_t r = 0, summed = 0; r < rows; r++, x += x_row, go += go_row) {
    if (summed + vectors > kRun) {
      add_sums(sum, sums, N);
      unroll<1 + Both>([&](auto b) GW_LAMBDA { unroll<N>([&](auto n) GW_LAMBDA { sum[b][n] = Vec{}; }); });
      summed = 0;
    }
    summed += vectors;
    int64_t i = t.first;
    const auto inputs_of = [&](int64_t output) GW_LAMBDA {
      const int64_t at = output + t.low + tap;
      return load_between(x + at, -at, t.in - at);
    };
    Vec one = inputs_of(i), two{}, before{}, out{};
    // Adds to the sums of the first N taps by `out`, and to those of the others by `before`. Inputs of lanes behind the row's last output
    // are left out where `first_ends`, or `others_end`: they may be NaN.
    const auto add = [&](auto first, auto first_ends, auto others, auto others_end) GW_LAMBDA {
      two = inputs_of(i + kLanes);
      unroll<N>([&](auto n) GW_LAMBDA {
        const Vec in = shifted<n>(one, two);
        if constexpr (others) add_product(sum[Both][n], others_end ? keep(in, end) : in, before);
        if constexpr (first) add_product(sum[0][n], first_ends ? keep(in, end) : in, out);
      });
      one = two;
      before = out;
      i += kLanes;
    };
    const std::integral_constant<int, 0> no;
    const std::integral_constant<int, 1> yes;
    const std::integral_constant<int, Both> both;
    for (int64_t v = 0; v < vectors - 1; v++) {
      if (t.ahead) {
        prefetch(x + i + t.low + tap + kAhead);
        prefetch(go + i + kAhead);
      }
      out = load(go + i);
      if (v == 0) {
        add(yes, no, no, no);
      } else {
        add(yes, no, both, no);
      }
    }
    out = load_some(go + i, end);
    if (vectors == 1) {
      add(yes, yes, no, no);
    } else {
      add(yes, yes, both, no);
    }
    if constexpr (Both) add(no, no, yes, yes);
  }
  add_sums(sum, sums, N);
}

// Adds the sums of any number of neighbouring taps.
inline void many_taps_sums(const LoneRow& t, int64_t rows, const Real* x, int64_t x_row, const Real* go, int64_t go_row,
                           Real* sums) {
  // The shifts whose sums, of two taps each, fit the registers.
  constexpr int kMost = std::min(8, kLanes);
  for (int64_t tap = 0; tap < t.taps;) {
    const int64_t left = std::min<int64_t>(t.taps - tap, 2 * kLanes), shifts = std::min<int64_t>(left, kLanes);
    const int64_t step = even_run(shifts, kMost);
    unroll<kMost>([&](auto n) GW_LAMBDA {
      constexpr int count = n + 1;
      if (step != count) return;
      for (int64_t first = 0; first < shifts; first += count) {
        const bool both = first + kLanes < left;
        Real some[2 * count] = {};
        (both ? shifted_sums<count, 1> : shifted_sums<count, 0>)(t, tap + first, rows, x, x_row, go, go_row, some);
        for (int64_t i = 0; i < count; i++) {
          if (first + i < shifts) sums[tap + first + i] += some[i];
          if (first + i + kLanes < left) sums[tap + first + i + kLanes] += some[count + i];
        }
      }
    });
    tap += left;
  }
}

// Adds the sums of a block of rows of `samples` samples of `groups` groups, whose rows begin at `input` and at `grad_output`.
// Several samples have one row each.
inline void sum_lone_rows(const GradWeight& work, int64_t samples, const Range& rows, const Range& columns, int64_t groups,
                          const Real* input, const Real* grad_output, Real* sums) {
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  // Taps that read padding alone are left out.
  const int64_t low = columns.first * p.w.stride - p.w.pad, span = (columns.last - 1 - columns.first) * p.w.stride;
  const Range inside = outputs_inside(low, span, p.w.dilation, p.w.kernel, p.w.in);
  const LoneRow t{
      inside.last - inside.first, inside.first * p.w.dilation - p.w.pad, p.w.dilation, p.w.in, columns.first, columns.last,
      beyond_cache(work)};
  const int64_t count = samples * (rows.last - rows.first), x_row = samples > 1 ? xs.n : xs.h,
                go_row = samples > 1 ? gs.n : gs.h;
  decltype(&many_taps_sums) add = nullptr;
  if constexpr (kMasks)
    if (t.taps > kFewTaps) add = many_taps_sums;
  with_few_taps(t.taps, p.w.stride, [&](auto taps, auto stride) GW_LAMBDA { add = few_taps_sums<taps, stride>; });
  if (!add) return;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t o = 0; o < p.out_channels; o++)
      add(t, count, input + g * xs.c + rows.first * xs.h, x_row,
          grad_output + (g * p.out_channels + o) * gs.c + rows.first * gs.h, go_row,
          sums + (g * p.out_channels + o) * p.w.kernel + inside.first);
}

}  // namespace groupwise::GW_TARGET
