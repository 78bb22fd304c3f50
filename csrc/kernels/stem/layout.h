// Lays out the work of stem: few input channels, whose rows are copied as planes, and vectors along the output channels.
#pragma once

#include "kernels/planar/layout.h"

namespace groupwise {

// The vectors of output channels of a tile.
constexpr int kStemVectors = 2;

// Returns the most pixels of a tile of `vectors` vectors: sums, weights and an input fill the registers.
inline int64_t stem_pixels_most(int64_t lanes, int64_t vectors) {
  if (lanes >= 16) return 14;
  return vectors == 1 ? 12 : 6;
}

// Returns how many pixels of a row of so many outputs a tile computes: an even number, so that few are beyond the row's end.
inline int64_t stem_pixels(int64_t columns, int64_t most) { return round_up(ceil_div(columns, ceil_div(columns, most)), 2); }

// A task computes a block of outputs of all channels of a group. Its scratch holds the zero-padded input planes, where their taps
// read and, if the output is planar, the outputs' pixels.
struct StemLayout {
  Block block;
  Plane plane;
  bool staged;
  std::vector<int32_t> columns;  // where tap t of a row reads
  int64_t outputs;               // of a group, in whole vectors
  int64_t input_floats, floats;
  int64_t tap_numbers;             // of the table of taps
  int64_t stage_pixel, stage_row;  // floats from pixel to pixel of the staged outputs, and from row to row
  int64_t weight_floats;           // of one group's packed weights
  int64_t pack_tasks(const CorrelationShape& c) const { return c.groups; }
  int64_t tasks(const CorrelationShape& c) const {
    return c.batch * c.groups * ceil_div(c.h.out, block.rows) * ceil_div(c.w.front().out, block.columns);
  }
};

bool lay_out_stem(const Correlation& c, int64_t lanes, int64_t threads, StemLayout* layout);

}  // namespace groupwise
