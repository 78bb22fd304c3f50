// Rows of outputs in which phases take turns, as in the gradient of a stride, that each meet one row of inputs. Rows are read and written
// where they are.
#pragma once
#include "kernels/planar/layout.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"
#include "simd/simd.h"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace groupwise::GW_TARGET {

// Output j of a phase reads inputs j + low to j + low + taps - 1, if they are of the row, the first by weight w and each by one
// w_step further.
struct LonePhase {
  int64_t low, taps, w, w_step;
};

// A row of `in` inputs, and outputs [first, last) of each phase; phases behind the first may have one less. `outputs` counts those of all
// phases before `last`, from the row's start. Output j reads inputs j + low to j + high, each phase some of these. Vectors of outputs
// within [begin, inside) read inputs alone.
struct LonePhases {
  LonePhase phase[kWovenPhases];
  int64_t in, first, last, outputs, low, high, begin, inside;
  bool ahead;  // what follows is prefetched
};

// Computes the outputs of one row of one channel by P phases.
template <int P>
GW_NOINLINE void phases_row(const LonePhases& t, const Real* x, const Real* w, const Real* bias, Real* y) {
  const Vec start = bias ? broadcast(*bias) : Vec{};
  // Returns outputs from j on, woven. Each vector of inputs that in(i) loads, i numbers behind the first, serves all phases.
  const auto compute = [&]<int V>(Vec(&sum)[V][P], auto&& in) GW_LAMBDA {
    unroll<V>([&](auto v) GW_LAMBDA { unroll<P>([&](auto p) GW_LAMBDA { sum[v][p] = start; }); });
    for (int64_t at = t.low; at <= t.high; at++) {
      Vec some[V];
      unroll<V>([&](auto v) GW_LAMBDA { some[v] = in(at + v * kLanes); });
      unroll<P>([&](auto p) GW_LAMBDA {
        const LonePhase& s = t.phase[p];
        const int64_t tap = at - s.low;
        if (tap < 0 || tap >= s.taps) return;
        const Vec weight = broadcast(w[s.w + tap * s.w_step]);
        unroll<V>([&](auto v) GW_LAMBDA { add_product(sum[v][p], some[v], weight); });
      });
    }
    unroll<V>([&](auto v) GW_LAMBDA { weave(sum[v]); });
  };
  const auto inside = [&](int64_t j, auto vectors) GW_LAMBDA {
    Vec sum[vectors][P];
    compute(sum, [&](int64_t i) GW_LAMBDA { return load(x + j + i); });
    if (t.ahead) {
      prefetch_numbers<vectors * kLanes>(x + j + kAhead);
      prefetch_numbers<P * vectors * kLanes>(y + P * j + kAhead);
    }
    unroll<vectors>([&](auto v) GW_LAMBDA {
      unroll<P>([&](auto p) GW_LAMBDA { store(y + P * (j + v * kLanes) + p * kLanes, sum[v][p]); });
    });
  };
  const auto edge = [&](int64_t j) GW_LAMBDA {
    Vec sum[1][P];
    compute(sum, [&](int64_t i) GW_LAMBDA { return load_between(x + j + i, -j - i, t.in - j - i); });
    const int64_t left = t.outputs - P * j;
    unroll<P>([&](auto p) GW_LAMBDA {
      if (left > p * kLanes) store_some(y + P * j + p * kLanes, sum[0][p], left - p * kLanes);
    });
  };
  int64_t j = t.first;
  for (; j < t.begin; j += kLanes) edge(j);
  for (; j + 2 * kLanes <= t.inside; j += 2 * kLanes) inside(j, std::integral_constant<int, 2>{});
  for (; j + kLanes <= t.inside; j += kLanes) inside(j, std::integral_constant<int, 1>{});
  for (; j < t.last; j += kLanes) edge(j);
}

// Computes a block of rows of `groups` groups, whose outputs begin at `output`.
inline void run_lone_phases(const Correlation& c, const Block& b, int64_t groups, int64_t row, int64_t rows, int64_t column,
                            int64_t group, const Real* input, Real* output) {
  const WeightStrides& ws = c.weight_strides;
  const int64_t phases = static_cast<int64_t>(c.w.size()), last = std::min(column + b.columns, c.w.front().out);
  LonePhases t;
  t.in = c.w.front().in;
  t.first = t.begin = column;
  t.last = t.inside = last;
  t.outputs = 0;
  t.low = std::numeric_limits<int64_t>::max();
  t.high = std::numeric_limits<int64_t>::min();
  t.ahead = beyond_cache(c);
  for (int64_t i = 0; i < phases; i++) {
    const Phase& all = c.w[i];
    const Phase s = clipped(all, column, last - column);
    t.phase[i] = {s.low, s.taps, c.h.index * ws.h + s.index * ws.w, s.index_step * ws.w};
    t.outputs += std::min(last, all.out);
    t.inside = std::min(t.inside, all.out);
    if (s.taps == 0) continue;
    t.low = std::min(t.low, s.low);
    t.high = std::max(t.high, s.low + s.taps - 1);
  }
  if (t.low <= t.high) {
    t.begin = std::max(t.begin, std::min(last, -t.low));
    t.inside = std::min(t.inside, t.in - t.high);
  }
  const auto row_of = phases == 2 ? phases_row<2> : phases == 3 ? phases_row<3> : phases_row<4>;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t r = row; r < row + rows; r++)
      for (int64_t o = 0; o < c.out_channels; o++)
        row_of(t, input + g * c.input_strides.c + r * c.input_strides.h, c.weight + (group + g) * ws.group + o * ws.o,
               c.bias ? c.bias + (group + g) * c.out_channels + o : nullptr,
               output + (g * c.out_channels + o) * c.output_strides.c + r * c.output_strides.h);
}

}  // namespace groupwise::GW_TARGET
