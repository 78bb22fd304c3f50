// Correlation of one input channel whose outputs interleave in a row: the phases of a stride's gradient. A tile computes the
// same columns of all phases and weaves them in registers, so that rows are written whole and in place.
#pragma once
#include "kernels/planar/layout.h"
#include "kernels/typed.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// The block of a task, and the input row that scratch begins with.
struct WovenBlock {
  int64_t row, column, rows, group, groups, low;
};

// The taps that a tile sums for one phase: where the first weight lies, and where each tap reads from the row's start.
struct WovenPhase {
  int64_t w;
  const int32_t* column;
  int64_t taps, w_column;
};

struct WovenTask {
  WovenPhase phase[kWovenPhases];
  int64_t tap_rows, x_row, w_row, y_row;
  int64_t columns, width;  // of the widest phase, and of all together
};

// Computes R rows, or C vectors of one row, of all P phases, whose kernel has K rows of taps.
template <int P, int K, int R, int C>
GW_NOINLINE void woven_tile(const WovenTask& t, const Real* x, const Real* w, const Real* bias, Real* y) {
  const Vec start = bias ? broadcast(*bias) : Vec{};
  const int64_t last = std::max<int64_t>(0, t.columns - C * kLanes), x_row = t.x_row, w_row = t.w_row;
  for (int64_t at = 0;; at = std::min(at + C * kLanes, last)) {
    Vec sum[R * C][P];
    unroll<P>([&](auto p) GW_LAMBDA {
      const WovenPhase& s = t.phase[p];
      unroll<R * C>([&](auto i) GW_LAMBDA { sum[i][p] = start; });
      const Real* weights = w + s.w;
      for (int64_t kw = 0; K > 0 && kw < s.taps; kw++, weights += s.w_column) {
        const Real* from = x + at + s.column[kw];
        Vec weight[K + 1];
        unroll<K>([&](auto i) GW_LAMBDA {
          weight[i] = broadcast(weights[i * w_row]);
          pin(weight[i]);
        });
        unroll<C*(R + K - 1)>([&](auto i) GW_LAMBDA {
          constexpr int row = i / C, c = i % C;
          Vec in = load(from + row * x_row + c * kLanes);
          pin(in);
          unroll<R>([&](auto r) GW_LAMBDA {
            if constexpr (row >= r && row - r < K) add_product(sum[r * C + c][p], in, weight[row - r]);
          });
        });
      }
    });
    const int64_t left = t.width - at * P;
    // Without masks, a row that ends within a vector is copied from whole vectors: a call at every store would spill the sums.
    alignas(Vec) Real full[kMasks ? 1 : R * C * P * kLanes];
    const bool aside = !kMasks && left < C * P * kLanes;
    Real* to = aside ? full : y + at * P;
    const int64_t to_row = aside ? C * P * kLanes : t.y_row;
    unroll<R * C>([&](auto i) GW_LAMBDA {
      weave(sum[i]);
      unroll<P>([&](auto v) GW_LAMBDA {
        constexpr int place = (i % C * P + v) * kLanes;
        if constexpr (kMasks) {
          store_some(to + i / C * to_row + place, sum[i][v], left - place);
        } else {
          store(to + i / C * to_row + place, sum[i][v]);
        }
      });
    });
    if (aside)
      for (int64_t r = 0; r < R; r++) copy(y + at * P + r * t.y_row, full + r * to_row, left);
    if (at == last) return;
  }
}

// Computes `rows` rows; the last tile starts early, as the last vector does.
template <int P, int K>
inline void woven_rows(const WovenTask& t, int64_t rows, const Real* x, const Real* w, const Real* bias, Real* y) {
  // A tile has about eight sums, which keep the FMA units busy.
  constexpr int kSums = P == 2 ? 4 : 2;
  const bool few = rows < kSums;
  const int64_t vectors = t.columns / kLanes, step = few ? 1 : kSums;
  const auto tile = !few               ? woven_tile<P, K, kSums, 1>
                    : vectors >= kSums ? woven_tile<P, K, 1, kSums>
                    : vectors >= 2     ? woven_tile<P, K, 1, 2>
                                       : woven_tile<P, K, 1, 1>;
  for (int64_t next = 0; next < rows; next += step) {
    const int64_t row = std::min(next, rows - step);
    tile(t, x + row * t.x_row, w, bias, y + row * t.y_row);
  }
}

template <int P>
inline void run_phases(const WovenTask& t, int64_t rows, const Real* x, const Real* w, const Real* bias, Real* y) {
  switch (t.tap_rows) {
    case 1: return woven_rows<P, 1>(t, rows, x, w, bias, y);
    case 2: return woven_rows<P, 2>(t, rows, x, w, bias, y);
    case 3: return woven_rows<P, 3>(t, rows, x, w, bias, y);
    case 4: return woven_rows<P, 4>(t, rows, x, w, bias, y);
    default: return woven_rows<P, 0>(t, rows, x, w, bias, y);
  }
}

// Computes the block of a task, whose inputs lie in scratch; `output` is that of its first group.
inline void run_woven(const Correlation& c, const CorrelationLayout& l, const WovenBlock& b, const Real* scratch,
                      Real* output) {
  const Plane& plane = l.plane;
  const Strides& ys = c.output_strides;
  const WeightStrides& ws = c.weight_strides;
  const int64_t phases = static_cast<int64_t>(c.w.size());
  WovenTask t;
  t.x_row = plane.row;
  t.y_row = ys.h * c.h.step;
  t.columns = t.width = 0;
  for (const Phase& s : c.w) {
    const int64_t columns = std::min(l.block.columns, s.out - b.column);
    t.columns = std::max(t.columns, columns);
    t.width += columns;
  }
  for (int64_t row = 0; row < b.rows; row += l.strip.rows) {
    const int64_t rows = std::min(l.strip.rows, b.rows - row);
    const Phase h = clipped(c.h, b.row + row, rows);
    t.tap_rows = h.taps;
    t.w_row = h.index_step * ws.h;
    for (size_t i = 0; i < c.w.size(); i++) {
      const Phase w = clipped(c.w[i], b.column, std::min(l.block.columns, c.w[i].out - b.column));
      const int64_t skipped = w.index != c.w[i].index ? (w.index - c.w[i].index) / w.index_step : 0;
      t.phase[i] = {h.index * ws.h + w.index * ws.w, l.columns[i].data() + skipped, w.taps, w.index_step * ws.w};
    }
    const auto run = phases == 2 ? run_phases<2> : phases == 3 ? run_phases<3> : run_phases<4>;
    const Real* x = h.taps > 0 ? scratch + (b.row + row + h.low - b.low) * plane.row : scratch;
    Real* y = output + (c.h.first + (b.row + row) * c.h.step) * ys.h + b.column * phases;
    for (int64_t g = 0; g < b.groups; g++)
      for (int64_t o = 0; o < c.out_channels; o++) {
        const int64_t channel = g * c.out_channels + o;
        const Real* bias = c.bias ? c.bias + b.group * c.out_channels + channel : nullptr;
        run(t, rows, x + g * plane.channel, c.weight + (b.group + g) * ws.group + o * ws.o, bias, y + channel * ys.c);
      }
  }
}

}  // namespace groupwise::GW_TARGET
