// Rows that each meet one row of taps, and are read and written where they are. To copy them takes longer than the products of few taps.
#pragma once
#include "kernels/planar/layout.h"
#include "kernels/planar/shifted-inl.h"
#include "kernels/planar/strided-inl.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"
#include "simd/simd.h"

#include <algorithm>
#include <type_traits>

namespace groupwise::GW_TARGET {

// Outputs [first, last) of a row; tap t of `taps` of output i reads input i * stride + low + t * spacing, if that is one of `in`.
struct LoneRow {
  int64_t taps, low, spacing, in, first, last;
  bool ahead;  // what follows is prefetched
};

// Calls several(i, V) for V vectors of outputs from i on whose taps lie inside the input, and edge(i, count) for the first `count`
// lanes of a vector where some do not. With a stride S the last lane of a tap's loads lies up to S - 1 numbers behind what it reads.
template <int K, int S, int V, class Several, class Edge>
GW_INLINE void in_row(const LoneRow& t, Several&& several, Edge&& edge) {
  const int64_t begin = std::min(t.last, (S - 1 - t.low) / S);
  const int64_t inside = std::min(t.last, (t.in - t.low - (K - 1) * t.spacing) / S);
  int64_t i = t.first;
  for (; i < begin; i += kLanes) edge(i, std::min<int64_t>(kLanes, t.last - i));
  for (; i + V * kLanes <= inside; i += V * kLanes) several(i, std::integral_constant<int, V>{});
  for (; i + kLanes <= inside; i += kLanes) several(i, std::integral_constant<int, 1>{});
  for (; i < t.last; i += kLanes) edge(i, std::min<int64_t>(kLanes, t.last - i));
}

// Computes the outputs of one row of one channel by K taps, whose weights stay in registers. With a stride S taps are neighbours.
template <int K, int S>
GW_NOINLINE void few_taps_row(const LoneRow& t, const Real* x, const Real* w, int64_t w_column, const Real* bias, Real* y) {
  Vec weight[K];
  unroll<K>([&](auto k) GW_LAMBDA {
    weight[k] = broadcast(w[k * w_column]);
    pin(weight[k]);
  });
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const Real* from = x + t.low;
  in_row<K, S, S == 1 ? 4 : 2>(
      t,
      [&](int64_t i, auto vectors) GW_LAMBDA {
        if (t.ahead) {
          prefetch_numbers<S * vectors * kLanes>(from + S * i + kAhead);
          prefetch_numbers<vectors * kLanes>(y + i + kAhead);
        }
        Vec sum[vectors];
        unroll<vectors>([&](auto v) GW_LAMBDA { sum[v] = start; });
        unroll<vectors>([&](auto v) GW_LAMBDA {
          const Real* at = from + S * (i + v * kLanes);
          each_tap<K, S>([&](auto k, int j) GW_LAMBDA { return load(at + k * t.spacing + j); },
                         [&](auto k, Vec in) GW_LAMBDA { add_product(sum[v], in, weight[k]); });
        });
        unroll<vectors>([&](auto v) GW_LAMBDA { store(y + i + v * kLanes, sum[v]); });
      },
      [&](int64_t i, int64_t count) GW_LAMBDA {
        Vec sum = start;
        const int64_t first = S * i + t.low;
        each_tap<K, S>(
            [&](auto k, int j) GW_LAMBDA {
              const int64_t at = first + k * t.spacing + j;
              return load_between(x + at, -at, t.in - at);
            },
            [&](auto k, Vec in) GW_LAMBDA { add_product(sum, in, weight[k]); });
        store_some(y + i, sum, count);
      });
}

// The same by any number of taps that are neighbours.
GW_NOINLINE void many_taps_row(const LoneRow& t, const Real* x, const Real* w, int64_t w_column, const Real* bias, Real* y) {
  constexpr int kMost = 8;
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const int64_t vectors = ceil_div(t.last - t.first, kLanes), step = even_run(vectors, kMost);
  for (int64_t i = t.first; i < t.last; i += step * kLanes) {
    const int64_t at = i + t.low, left = t.last - i;
    if (t.ahead)
      for (int64_t v = 0; v < step; v++) {
        prefetch(x + at + v * kLanes + kAhead);
        prefetch(y + i + v * kLanes + kAhead);
      }
    unroll<kMost>([&](auto n) GW_LAMBDA {
      constexpr int count = n + 1;
      if (ceil_div(std::min(left, step * kLanes), kLanes) != count) return;
      Vec sum[count];
      unroll<count>([&](auto v) GW_LAMBDA { sum[v] = start; });
      add_shifted<count>(
          t.taps, w, w_column, [&](int64_t j) GW_LAMBDA { return load_between(x + at + j, -at - j, t.in - at - j); }, sum);
      unroll<count>([&](auto v) GW_LAMBDA { store_some(y + i + v * kLanes, sum[v], left - v * kLanes); });
    });
  }
}

// The same without a tap.
inline void no_taps_row(const LoneRow& t, const Real*, const Real*, int64_t, const Real* bias, Real* y) {
  std::fill(y + t.first, y + t.last, bias ? *bias : Real{});
}

// Calls f(K, S) with the number of taps and the stride as constants, and not if there is no tap.
template <class F>
GW_INLINE void with_few_taps(int64_t taps, int64_t stride, F&& f) {
  unroll<kFewTaps>([&](auto n) GW_LAMBDA {
    unroll<kMostStride>([&](auto s) GW_LAMBDA {
      if (taps == n + 1 && stride == s + 1) f(std::integral_constant<int, n + 1>{}, std::integral_constant<int, s + 1>{});
    });
  });
}

// Computes a block of rows of `groups` groups, whose outputs begin at `output`.
inline void run_lone_rows(const Correlation& c, const Block& b, int64_t groups, int64_t row, int64_t rows, int64_t column,
                          int64_t group, const Real* input, Real* output) {
  const int64_t columns = std::min(b.columns, c.w.front().out - column);
  const Phase w = clipped(c.w.front(), column, columns);
  const WeightStrides& ws = c.weight_strides;
  const LoneRow t{w.taps, w.low, w.spacing, w.in, column, column + columns, beyond_cache(c)};
  auto* compute = w.taps == 0 ? &no_taps_row : nullptr;
  if constexpr (kMasks)
    if (w.taps > kFewTaps) compute = many_taps_row;
  with_few_taps(w.taps, w.stride, [&](auto taps, auto stride) GW_LAMBDA { compute = few_taps_row<taps, stride>; });
  for (int64_t g = 0; g < groups; g++)
    for (int64_t r = row; r < row + rows; r++)
      for (int64_t o = 0; o < c.out_channels; o++)
        compute(t, input + g * c.input_strides.c + r * c.input_strides.h,
                c.weight + (group + g) * ws.group + o * ws.o + c.h.index * ws.h + w.index * ws.w, w.index_step * ws.w,
                c.bias ? c.bias + (group + g) * c.out_channels + o : nullptr,
                output + (g * c.out_channels + o) * c.output_strides.c + r * c.output_strides.h);
}

}  // namespace groupwise::GW_TARGET
