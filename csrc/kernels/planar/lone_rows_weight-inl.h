// The gradient of few taps of a row, from rows that are read where they are.
#pragma once
#include "kernels/planar/add_sums-inl.h"
#include "kernels/planar/lone_rows-inl.h"

namespace groupwise::GW_TARGET {

// Adds the sum over the outputs of `rows` rows, x_row and go_row numbers apart, of their gradient times what each of K taps reads.
template <int K>
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
    in_row<K, V>(
        t,
        [&](int64_t i, auto several) GW_LAMBDA {
          if (t.ahead) {
            prefetch_numbers<several * kLanes>(from + i + kAhead);
            prefetch_numbers<several * kLanes>(go + i + kAhead);
          }
          unroll<several>([&](auto v) GW_LAMBDA {
            Vec out = load(go + i + v * kLanes);
            pin(out);
            unroll<K>([&](auto k) GW_LAMBDA { add_product(sum[v][k], load(from + i + k * t.spacing + v * kLanes), out); });
          });
        },
        [&](int64_t i, int64_t count) GW_LAMBDA {
          const Vec out = load_some(go + i, count);
          unroll<K>([&](auto k) GW_LAMBDA {
            const int64_t at = i + t.low + k * t.spacing;
            add_product(sum[0][k], load_between(x + at, -at, std::min(count, t.in - at)), out);
          });
        });
  }
  flush();
}

// Adds the sums of a block of rows of `groups` groups, whose rows begin at `input` and at `grad_output`.
inline void sum_lone_rows(const GradWeight& work, const Range& rows, const Range& columns, int64_t groups, const Real* input,
                          const Real* grad_output, Real* sums) {
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  // Taps that read padding alone are left out.
  const int64_t low = columns.first - p.w.pad;
  const Range taps = outputs_inside(low, columns.last - 1 - columns.first, p.w.dilation, p.w.kernel, p.w.in);
  const LoneRow t{
      taps.last - taps.first, taps.first * p.w.dilation - p.w.pad, p.w.dilation, p.w.in, columns.first, columns.last,
      beyond_cache(work)};
  with_few_taps(t.taps, [&](auto count) GW_LAMBDA {
    for (int64_t g = 0; g < groups; g++)
      for (int64_t o = 0; o < p.out_channels; o++)
        few_taps_sums<count>(t, rows.last - rows.first, input + g * xs.c + rows.first * xs.h, xs.h,
                             grad_output + (g * p.out_channels + o) * gs.c + rows.first * gs.h, gs.h,
                             sums + (g * p.out_channels + o) * p.w.kernel + taps.first);
  });
}

}  // namespace groupwise::GW_TARGET
