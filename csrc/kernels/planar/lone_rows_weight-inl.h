// The gradient of few taps of a row, from rows that are read where they are.
#pragma once
#include "kernels/planar/add_sums-inl.h"
#include "kernels/planar/lone_rows-inl.h"

namespace groupwise::GW_TARGET {

// Adds the sum over the outputs of one row of their gradient times what each of K taps reads.
template <int K>
GW_NOINLINE void few_taps_sums(const LoneRow& t, const Real* x, const Real* go, Real* sums) {
  // One vector's sums would wait for those of the vector before.
  constexpr int V = 2 * K + 4 <= kRegisters ? 2 : 1;
  Vec sum[V][K];
  unroll<V>([&](auto v) GW_LAMBDA { unroll<K>([&](auto k) GW_LAMBDA { sum[v][k] = Vec{}; }); });
  const Real* from = x + t.low;
  in_row<K, V>(
      t,
      [&](int64_t i, auto vectors) GW_LAMBDA {
        if (t.ahead) {
          prefetch_numbers<vectors * kLanes>(from + i + kAhead);
          prefetch_numbers<vectors * kLanes>(go + i + kAhead);
        }
        unroll<vectors>([&](auto v) GW_LAMBDA {
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
  if constexpr (V == 2) unroll<K>([&](auto k) GW_LAMBDA { sum[0][k] += sum[1][k]; });
  Vec all[1][K];
  unroll<K>([&](auto k) GW_LAMBDA { all[0][k] = sum[0][k]; });
  add_sums(all, sums, K);
}

// Adds the sums of a block of rows of `groups` groups, whose rows begin at `input` and at `grad_output`.
inline void sum_lone_rows(const GradWeight& work, const Range& rows, const Range& columns, int64_t groups, const Real* input,
                          const Real* grad_output, Real* sums) {
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  const LoneRow t{p.w.kernel, -p.w.pad, p.w.dilation, p.w.in, columns.first, columns.last, beyond_cache(work)};
  with_few_taps(p.w.kernel, [&](auto taps) GW_LAMBDA {
    for (int64_t g = 0; g < groups; g++)
      for (int64_t r = rows.first; r < rows.last; r++)
        for (int64_t o = 0; o < p.out_channels; o++)
          few_taps_sums<taps>(t, input + g * xs.c + r * xs.h, grad_output + (g * p.out_channels + o) * gs.c + r * gs.h,
                              sums + (g * p.out_channels + o) * taps);
  });
}

}  // namespace groupwise::GW_TARGET
