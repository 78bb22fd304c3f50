// Correlation of one row of outputs with vectors along the width. Its sums share no input, so only their number keeps the FMA
// units busy: two a cycle that take four cycles each need eight.
#pragma once
#include "kernels/planar/shifted-inl.h"
#include "kernels/planar/task-inl.h"

namespace groupwise::GW_TARGET {

constexpr int kLineVectors = 8;

// Computes NV neighbouring vectors of a row. The last one begins `last` floats after the first.
template <int NV>
GW_NOINLINE void line_tile(const Taps& t, const Real* x, int64_t last, const Real* w, const Real* bias, Real* y, int64_t stored,
                           bool add) {
  const auto place = [&](auto v) GW_LAMBDA { return v < NV - 1 ? v * kLanes : last; };
  Vec sum[NV];
  unroll<NV>([&](auto v) GW_LAMBDA { sum[v] = bias ? broadcast(*bias) : Vec{}; });
  for (int64_t c = 0; c < t.channels; c++, x += t.x_channel, w += t.w_channel) {
    const Real* row = x;
    const Real* weights = w;
    for (int64_t kh = 0; kh < t.rows; kh++, row += t.x_row, weights += t.w_row) {
      const Real* weight = weights;
      for (int64_t kw = 0; kw < t.columns; kw++, weight += t.w_column) {
        const Real* at = row + t.column[kw];
        const Vec factor = broadcast(*weight);
        unroll<NV>([&](auto v) GW_LAMBDA { add_product(sum[v], load(at + place(v)), factor); });
      }
    }
  }
  unroll<NV>([&](auto v) GW_LAMBDA { put(y + place(v), sum[v], stored - v * kLanes, add); });
}

// Computes one row of output channel o.
inline void run_line(const PlanarTask& p, int64_t o, int64_t row) {
  const Real* in = p.x + row * p.stride * p.row_floats;
  const Real* w = p.w + o * p.taps.w_output;
  const Real* bias = p.bias ? p.bias + o : nullptr;
  Real* y = p.y + o * p.y_channel + row * p.y_row;
  const int64_t vectors = ceil_div(p.columns, kLanes);
  const Taps& t = p.taps;
  // Where two taps are neighbours all are: one stride apart in the image, they read one residue of it.
  const bool shifts = kMasks && t.columns >= kLeastShifted && t.column[1] - t.column[0] == 1;
  // The last vector starts early rather than end late, as in `bundle`.
  const bool early = !shifts && !p.add && p.columns >= kLanes;
  for (int64_t v = 0, taken; v < vectors; v += taken) {
    const int64_t left = vectors - v, x = v * kLanes;
    taken = ceil_div(left, ceil_div(left, kLineVectors));
    const int64_t last = early && taken == left ? p.columns - kLanes - x : (taken - 1) * kLanes;
    const int64_t stored = early ? taken * kLanes : p.columns - x;
    unroll<kLineVectors>([&](auto n) GW_LAMBDA {
      if (taken != n + 1) return;
      if constexpr (kMasks)
        if (shifts) return shifted_tile<n + 1>(t, in + x, w, bias, y + x, stored, p.add);
      line_tile<n + 1>(p.taps, in + x, last, w, bias, y + x, stored, p.add);
    });
  }
}

}  // namespace groupwise::GW_TARGET
