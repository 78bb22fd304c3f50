// Lays out the work of the kernels whose vectors run along the channels: narrow, groups and dots.
#pragma once

#include "kernels/layout.h"

namespace groupwise {

// The outputs that a tile computes together.
constexpr int64_t kPixelTile = 8;

// The output channels of a group whose weights are packed side by side.
constexpr int64_t kGroupBlock = 16;

// Tells whether narrow/lanes-inl.h can spread the inputs of a vector of output channels: it holds whole groups, or is of one group.
inline bool lanes_fit(int64_t in_channels, int64_t out_channels, int64_t lanes) {
  if (out_channels >= lanes) return true;
  if (out_channels == in_channels) return lanes % out_channels == 0;
  return out_channels == 1 ? in_channels == 2 : in_channels == 1 && lanes % out_channels == 0;
}

// Returns how many vectors hold the output channels of groups: a vector holds several groups, or channels of one.
inline int64_t vectors_of(int64_t groups, int64_t out_channels, int64_t lanes) {
  return out_channels >= lanes ? groups * ceil_div(out_channels, lanes) : ceil_div(groups * out_channels, lanes);
}

// A task with lanes along the channels computes one of `blocks` blocks of channels, the last of which is what is left. Its
// scratch holds the zero-padded input pixels (none where the tensor is read in place), the weights, and, where the output is
// planar, the output's pixels.
struct ChannelsLayout {
  Block block;
  Strip strip;
  int64_t blocks;
  int64_t low_w;
  Pixels input;
  bool staged;
  bool in_place = false;  // of groups and dots: the input is read where it is
  bool ahead;             // the input is fetched ahead
  bool by_rows = false;   // of groups: tiles share the inputs of neighbouring taps, in all phases of more than one
  Pixels output;
  int64_t kernel_h, kernel_w;
  int64_t input_floats, weight_floats, floats;
  // Returns the output channels of a block.
  int64_t channels_of(const CorrelationShape& c, int64_t of) const {
    const int64_t groups = of == blocks - 1 ? c.groups - of * block.groups : block.groups;
    return groups * c.out_channels;
  }
  int64_t tasks(const CorrelationShape& c) const {
    return c.batch * blocks * ceil_div(c.h.out, block.rows) * ceil_div(c.w.front().out, block.columns);
  }
};

// Returns how many pixels a tile of groups, or of dots, computes.
inline int64_t tile_pixels(const CorrelationShape& c, int64_t lanes, bool dots) {
  if (dots) return lanes >= 16 ? 4 : 3;
  // Two vectors a block of channels leave a tile of one vector for groups that fill no more.
  return lanes == 8 && c.out_channels <= lanes ? 8 : 12 * lanes / kGroupBlock;
}

// Returns the floats of the packed weights of kGroupBlock output channels of a group.
inline int64_t group_block_floats(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w) {
  return kernel_h * kernel_w * c.in_channels * kGroupBlock;
}

// Tiles of groups whose neighbouring taps share inputs: `pixels` of each of `rows` rows, by one vector or two.
struct RowTiles {
  int64_t pixels, rows;
  // Returns the rows of the tile that begins at a row, of `count`: the last of an odd number has a tile of its own if rows are
  // short.
  int64_t rows_at(int64_t row, int64_t count) const { return row + 1 == count && pixels == 7 ? 1 : rows; }
};

// Returns the tiles that compute fewest outputs beyond those of a strip; the largest of them.
inline RowTiles row_tiles(int64_t rows, int64_t columns, int64_t vectors) {
  const int64_t two = vectors == 1 ? 2 : 1;
  RowTiles best{};
  int64_t least = 0;
  for (const RowTiles& t : {RowTiles{14, 1}, RowTiles{10, two}, RowTiles{8, two}, RowTiles{7, two}}) {
    if (vectors == 2 && t.pixels == 14) continue;
    const int64_t outputs = round_up(columns, t.pixels) * (t.pixels == 7 ? rows : round_up(rows, t.rows));
    if (least == 0 || outputs < least) best = t, least = outputs;
  }
  return best;
}

// Lay out the three kernels.
bool lay_out_channels(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                      ChannelsLayout* layout);
bool lay_out_groups(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                    ChannelsLayout* layout);
bool lay_out_dots(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                  ChannelsLayout* layout);
}  // namespace groupwise
