// Where AMX finds the inputs of a band of output rows: a copy of them for each group, whose rows are padded with zeros, so that one tile
// of 16 rows reads the inputs of 16 neighbouring outputs, of all taps of a kernel's row.
#pragma once

#include <algorithm>

#include "kernels/layout.h"
#include "kernels/low/low.h"

namespace groupwise {

// The outputs of a vector of AVX-512, which a tile has as columns, and the most positions that are computed at once.
constexpr int64_t kBandColumns = 16, kBandPixels = 64;

// The layout is [group][residue of the row by the stride][row][column][channel]. A band's outputs are `pitch` positions apart from row
// to row, and the inputs of neighbouring positions are `step` numbers apart. Positions behind the last column of a row are computed
// too, and are no outputs.
struct LowBand {
  int64_t groups, phase_rows, columns, pitch, step, plane, numbers;

  LowBand(const LowGrouped& c, int64_t rows)
      : groups(std::max<int64_t>(1, kBandColumns / c.group)),
        phase_rows(ceil_div((rows - 1) * c.h.stride + (c.h.kernel - 1) * c.h.dilation + 1, c.h.stride)),
        columns(round_up((c.w.out - 1) * c.w.stride + (c.w.kernel - 1) * c.w.dilation + 1, c.w.stride)),
        pitch(columns / c.w.stride),
        step(c.w.stride * c.group),
        plane(c.h.stride * phase_rows * columns * c.group),
        // The last tile reads beyond the last position.
        numbers(groups * plane + kBandPixels * step) {}

  // Returns how far the input row `row` of a group is from the first one.
  int64_t row_at(const LowGrouped& c, int64_t row) const {
    return (row % c.h.stride * phase_rows + row / c.h.stride) * columns * c.group;
  }
};

// Groups of 8 channels or more fill tiles; below, half of a vector or more would be padding. The outputs of a band are all pixels of its
// rows, side by side.
inline bool fills_tiles(const LowGrouped& c) {
  const bool whole = c.group == c.inputs && (c.group == 8 || c.group % kBandColumns == 0);
  const bool dense = c.y_strides.w == c.channels && (c.h.out == 1 || c.y_strides.h == c.w.out * c.channels) &&
                     (c.batch == 1 || c.y_strides.n == c.h.out * c.w.out * c.channels);
  return whole && dense && std::min(c.h.pad, c.w.pad) >= 0 && c.h.out * c.w.out >= kBandPixels / 4;
}

// Returns how many rows of outputs a task computes by AMX: as many as stay in the L1 cache, and few enough for all threads to have tasks;
// 0 where not even one row fits into scratch.
inline int64_t band_rows(const LowGrouped& c, int64_t threads) {
  constexpr int64_t kCached = 12 * 1024, kFew = 4;
  const int64_t scratch = kScratchFloats * 2;
  const auto fits = [&](int64_t rows, int64_t numbers) { return LowBand(c, rows).numbers <= numbers; };
  if (!fits(1, scratch)) return 0;
  int64_t rows = c.h.out;
  while (rows > 1 && !(fits(rows, kCached) || (rows <= kFew && fits(rows, scratch)))) rows = ceil_div(rows, 2);
  while (threads > 1 && rows > kFew && c.batch * c.units() * ceil_div(c.h.out, rows) < 4 * threads) rows = ceil_div(rows, 2);
  return rows;
}

}  // namespace groupwise
