// What the tiles with vectors along the width work on.
#pragma once
#include "layout.h"
#include "simd.h"

namespace groupwise::GW_TARGET {

// What one tile sums over. x points at the first tap of the first output, w at the first tap's weight of its channel.
struct Taps {
  int64_t channels, rows, columns;
  const int32_t* column;     // where the taps of a row read, from its start
  int64_t x_channel, x_row;  // floats between channels, and between taps of neighbouring kernel rows
  int64_t w_channel, w_row, w_column, w_output;
};

// Where a tile writes, or adds: vector v at v * vector, its first `columns - v * narrower` floats.
struct Target {
  float* y;
  int64_t output, vector, columns, narrower;
  bool add;
};

// One Unit of work: the outputs of one block, group and phase.
struct PlanarTask {
  Taps taps;
  const float* x;
  const float* w;
  const float* bias;
  float* y;
  int64_t y_channel, y_row;
  int64_t outputs, rows, columns;
  int64_t row_floats, stride, spacing;  // of the input plane; of the height
  RowSharing sharing;
  bool add;  // to what earlier channels left in y
  bool single;
};

// Neighbouring vectors of a row of outputs: the first begins at x, the others `vector` floats after the one before.
struct Bundle {
  int64_t x, vector, columns;  // columns: left of the row from x on
};

// The next `taken` vectors of a row, of which x outputs are made. The last ones start early rather than end late, as whole
// vectors are stored at once and what is made twice is the same; not so where it is added.
GW_INLINE Bundle bundle(const PlanarTask& p, int64_t x, int64_t taken) {
  const int64_t left = p.columns - x, floats = taken * kLanes;
  if (left >= floats || p.add || p.columns < kLanes) return {x, kLanes, left};
  if (p.columns >= floats) return {p.columns - floats, kLanes, floats};
  const int64_t spare = p.columns - kLanes;
  return spare % (taken - 1) == 0 ? Bundle{0, spare / (taken - 1), floats} : Bundle{x, kLanes, left};
}

}  // namespace groupwise::GW_TARGET
