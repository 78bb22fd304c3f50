// The arguments of the tiles with vectors along the width.
#pragma once
#include "kernels/planar/layout.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// The taps that one tile sums. Its x points at the first tap of the first output, its w at that tap's weight.
struct Taps {
  int64_t channels, rows, columns;
  const int32_t* column;     // where each tap of a row reads, from the row's start
  int64_t x_channel, x_row;  // floats between channels, and between taps of neighbouring kernel rows
  int64_t w_channel, w_row, w_column, w_output;
};

// Where a tile writes, or adds: vector v at v * vector, its first `columns - v * narrower` floats.
struct Target {
  Real* y;
  int64_t output, vector, columns, narrower;
  bool add;
};

// The outputs of one group and one phase in the block of a task.
struct PlanarTask {
  Taps taps;
  const Real* x;
  const Real* w;
  const Real* bias;
  Real* y;
  int64_t y_channel, y_row;
  int64_t outputs, rows, columns;
  int64_t row_floats, stride, spacing;  // of the input plane; of the height
  RowSharing sharing;
  bool add;  // adds to what earlier channels left in y
  bool single;
  bool in_place;
};

// Neighbouring vectors of a row of outputs: the first begins at x, each other one `vector` floats after the one before.
struct Bundle {
  int64_t x, vector, columns;  // columns: those of the row from x on
};

// Returns the next `taken` vectors of a row, after x outputs. The last ones start early rather than end late, since whole
// vectors are stored at once and outputs computed twice are the same; not so where they are added.
GW_INLINE Bundle bundle(const PlanarTask& p, int64_t x, int64_t taken) {
  const int64_t left = p.columns - x, floats = taken * kLanes;
  if (left >= floats || p.add || p.columns < kLanes) return {x, kLanes, left};
  if (p.columns >= floats) return {p.columns - floats, kLanes, floats};
  const int64_t spare = p.columns - kLanes;
  return spare % (taken - 1) == 0 ? Bundle{0, spare / (taken - 1), floats} : Bundle{x, kLanes, left};
}

}  // namespace groupwise::GW_TARGET
