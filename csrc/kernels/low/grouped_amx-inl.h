// Groups of 8 channels or more by AMX. A task copies the inputs of a band of output rows (kernels/low/band.h), where one row of a tile
// are the inputs of all taps of a kernel's row, which are neighbours: their products with 16 outputs are a few instructions.
#pragma once
#include <algorithm>

#include "kernels/low/amx-inl.h"
#include "kernels/low/band.h"
#include "run.h"

#if GW_LANES == 16

namespace groupwise::GW_TARGET {

template <int N>
GW_INLINE void copy_pixels(const Bfloat16* from, int64_t from_pixel, Bfloat16* to, int64_t to_pixel, int64_t count) {
  for (int64_t p = 0; p < count; p++) std::memcpy(to + p * to_pixel, from + p * from_pixel, N * sizeof(Bfloat16));
}

// Copies the pixels of a row of one group, which has 8 channels or fills vectors.
GW_INLINE void copy_group(int64_t group, const Bfloat16* from, int64_t from_pixel, Bfloat16* to, int64_t count) {
  if (group == 8) return copy_pixels<8>(from, from_pixel, to, group, count);
  int64_t i = 0;
  for (; i + 2 * kLanes <= group; i += 2 * kLanes) copy_pixels<2 * kLanes>(from + i, from_pixel, to + i, group, count);
  if (i < group) copy_pixels<kLanes>(from + i, from_pixel, to + i, group, count);
}

// Copies the inputs of a band of `rows` rows of outputs, the first of which is `first`, of b.groups groups from `x` on.
inline void copy_band(const LowGrouped& c, const LowBand& b, const Bfloat16* x, int64_t first, int64_t rows, Bfloat16* to) {
  const int64_t inputs = (rows - 1) * c.h.stride + (c.h.kernel - 1) * c.h.dilation + 1;
  const int64_t left = std::min(c.w.pad, b.columns), copied = std::max<int64_t>(0, std::min(c.w.in, b.columns - left));
  const auto clear = [&](Bfloat16* at, int64_t columns) GW_LAMBDA { std::fill_n(at, columns * c.group, Bfloat16{0}); };
  for (int64_t i = 0; i < inputs; i++) {
    const int64_t row = first * c.h.stride - c.h.pad + i;
    for (int64_t g = 0; g < b.groups; g++) {
      Bfloat16* at = to + g * b.plane + b.row_at(c, i);
      if (row < 0 || row >= c.h.in) {
        clear(at, b.columns);
        continue;
      }
      clear(at, left);
      copy_group(c.group, x + row * c.x_strides.h + g * c.group, c.x_strides.w, at + left * c.group, copied);
      clear(at + (left + copied) * c.group, b.columns - left - copied);
    }
  }
}

// Adds the products of the next inputs to the sums of two rows of tiles, or of four, by one column.
template <int X, int W>
GW_INLINE void add_column(const Bfloat16* x, int64_t x_tile, int64_t x_row, const Bfloat16* w, int64_t w_row, bool four) {
  load_tile<W>(w, w_row);
  load_tile<X>(x, x_row);
  add_tiles<0, X, W>();
  load_tile<X>(x + x_tile, x_row);
  add_tiles<1, X, W>();
  if (!four) return;
  load_tile<X>(x + 2 * x_tile, x_row);
  add_tiles<2, X, W>();
  load_tile<X>(x + 3 * x_tile, x_row);
  add_tiles<3, X, W>();
}

// Sums of V columns, and the positions that they are of: four tiles in all, since each waits for the product before.
template <int V>
constexpr int64_t kPositions = kBandPixels / V;

// Sums `positions` positions from `x` on of V vectors of outputs, or of one group of less, to rows of V vectors.
template <int V>
GW_INLINE void sum_positions(const LowGrouped& c, const LowBand& b, const Bfloat16* x, const Bfloat16* w, int64_t w_vector,
                             int64_t positions, float* sums) {
  const int64_t x_row = b.step * 2, x_tile = kTileRows * b.step, w_row = 2 * kLowBlock;
  // Taps that are neighbours are summed in one run.
  const bool joined = c.w.dilation == 1, four = positions > 2 * kTileRows;
  const int64_t runs = joined ? 1 : c.w.kernel, run = joined ? c.w.kernel * c.group : c.group;
  const int64_t whole = run / kTileInputs * kTileInputs;
  clear_sums();
  for (int64_t row = 0; row < c.h.kernel; row++)
    for (int64_t r = 0; r < runs; r++, w += run * kLanes) {
      const Bfloat16* from = x + b.row_at(c, row * c.h.dilation) + r * c.w.dilation * c.group;
      if constexpr (V == 2) {
        for (int64_t i = 0; i < whole; i += kTileInputs)
          add_inputs<2, 4, 5>(from + i, x_tile, x_row, w + i * kLanes, w_row, w_vector);
        if (whole < run) add_inputs<2, 6, 7>(from + whole, x_tile, x_row, w + whole * kLanes, w_row, w_vector);
      } else {
        for (int64_t i = 0; i < whole; i += kTileInputs) add_column<4, 5>(from + i, x_tile, x_row, w + i * kLanes, w_row, four);
        if (whole < run) add_column<6, 7>(from + whole, x_tile, x_row, w + whole * kLanes, w_row, four);
      }
    }
  if constexpr (V == 2) return store_sums<2, 2 * kLanes>(sums);
  store_tile<0>(sums, 4 * kLanes);
  store_tile<1>(sums + kTileRows * kLanes, 4 * kLanes);
  if (!four) return;
  store_tile<2>(sums + 2 * kTileRows * kLanes, 4 * kLanes);
  store_tile<3>(sums + 3 * kTileRows * kLanes, 4 * kLanes);
}

// The first of the outputs of a band that are computed together: where they go, and how many channels they have.
struct BandOutputs {
  const Bfloat16 *x, *w;
  const float* bias;
  Bfloat16* y;
  int64_t rows, count;
};

// Computes V vectors of outputs of a band of one group, or of some groups that share a vector.
template <int V>
inline void band_outputs(const LowGrouped& c, const LowBand& b, const LowProduct& end, const BandOutputs& t) {
  constexpr int64_t kRow = V * kLanes;
  constexpr int P = 8;
  alignas(64) float sums[kPositions<V> * kRow];
  const int64_t w_vector = c.h.kernel * c.w.kernel * c.group / 2 * kLowBlock, positions = (t.rows - 1) * b.pitch + c.w.out;
  const int64_t groups = c.group < kLanes ? t.count / c.group : 1;
  Bfloat16* y = t.y;
  for (int64_t q = 0, column = 0; q < positions; q += kPositions<V>) {
    const int64_t here = std::min(kPositions<V>, positions - q);
    for (int64_t g = 0; g < groups; g++)
      sum_positions<V>(c, b, t.x + g * b.plane + q * b.step, t.w + g * c.group * 2, w_vector, here, sums + g * c.group);
    // Positions that are outputs, and those follow each other in memory.
    int64_t found[kPositions<V>], count = 0;
    for (int64_t i = 0; i < here; i++) {
      if (column < c.w.out) found[count++] = i;
      if (++column == b.pitch) column = 0;
    }
    for (int64_t p = 0; p < count; p += P) {
      const LowTileOfPixels part{nullptr, nullptr, nullptr, y + p * end.y_pixel, std::min<int64_t>(P, count - p), t.count};
      Vec sum[P * V];
      unroll<P>([&](auto i) GW_LAMBDA {
        const float* from = sums + found[std::min<int64_t>(p + i, count - 1)] * kRow;
        unroll<V>([&](auto v) GW_LAMBDA { sum[i * V + v] = load(from + v * kLanes) + load(t.bias + v * kLanes); });
      });
      finish_low<true, V, P>(end, part, sum);
    }
    y += count * end.y_pixel;
  }
}

// A task is a band of rows of a group, or of the groups of a vector.
GW_NOINLINE void grouped_bands(const LowGrouped& c, int64_t begin, int64_t end) {
  const int64_t run = c.w.dilation == 1 ? c.w.kernel * c.group : c.group, bands = ceil_div(c.h.out, c.rows);
  const int64_t units = c.units(), w_vector = c.h.kernel * c.w.kernel * c.group / 2 * kLowBlock;
  const Tiles tiles(run % kTileInputs, std::min<int64_t>(kLanes, c.group));
  Bfloat16* copy = reinterpret_cast<Bfloat16*>(scratch());
  LowProduct finished{};
  finished.y_pixel = c.channels;
  finished.before = c.before;
  finished.after = c.after;
  finished.residual = c.residual;
  finished.y = c.y;
  for (int64_t task = begin; task < end; task++) {
    const int64_t band = task % bands, unit = task / bands % units, n = task / (bands * units);
    const int64_t first = band * c.rows, rows = std::min(c.rows, c.h.out - first);
    const int64_t channel = unit * std::max<int64_t>(kLanes, c.group);
    LowBand b(c, rows);
    // The last vector begins early where it would end late, and the vector before has its first groups.
    const int64_t left = std::min<int64_t>(c.channels - channel, std::max<int64_t>(kLanes, c.group));
    const int64_t skipped = c.group < kLanes ? kLanes - left : 0;
    b.groups = std::min(b.groups, ceil_div(left, c.group));
    copy_band(c, b, c.x + n * c.x_strides.n + channel, first, rows, copy);
    Bfloat16* y = c.y + ((n * c.h.out + first) * c.w.out) * c.channels + channel;
    const Bfloat16* w = c.pairs + channel / kLanes * w_vector + skipped * 2;
    for (int64_t o = 0, next; o < left; o = next) {
      next = std::min(left, o + 2 * kLanes);
      const BandOutputs outputs{copy, w + o / kLanes * w_vector, c.bias + channel + o, y + o, rows, next - o};
      if (next - o > kLanes) {
        band_outputs<2>(c, b, finished, outputs);
      } else {
        band_outputs<1>(c, b, finished, outputs);
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET

#endif
