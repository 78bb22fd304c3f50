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

// The forms of `channels`: narrow groups side by side in a vector, or one group at a time, with lanes along its output
// channels or, as dot products, along its input channels.
enum class ChannelsForm { none, narrow, groups, dots };

inline ChannelsForm channels_form(const Correlation& c, int64_t lanes) {
  const bool in_place = c.input_strides.c == 1 && c.output_strides.c == 1;
  if (c.in_channels == 1 && c.out_channels == 1) return c.groups < 8 ? ChannelsForm::none : ChannelsForm::narrow;
  // Measured on one core, in ms, narrow | groups: 8 channels 28x28 0.42 | 0.51, 16 14x14 0.41 | 0.37, 24 1.10 | 1.01.
  if (in_place && c.out_channels < kGroupBlock && c.groups * c.out_channels >= 8 &&
      lanes_fit(c.in_channels, c.out_channels, lanes))
    return ChannelsForm::narrow;
  if (c.out_channels < 8) return ChannelsForm::none;
  // `groups` packs weights once for all pixels, `dots` sums lanes once for all weights, at about the same cost each. Measured
  // on one core, in ms, groups | dots: 16 channels 3x3 14x14 0.35 | 0.37, 32 7x7 0.44 | 0.34, 112 14x14 5.9 | 5.4, 192 13x13
  // 2.8 | 2.5, but 1x1 of 80 28x28 1.5 | 1.8.
  const bool dots = in_place && c.weight_strides.c == 1 && c.in_channels % lanes == 0 && c.w.size() == 1 &&
                    c.in_channels * c.h.taps * c.w.front().taps >= c.h.out * c.w.front().out;
  return dots ? ChannelsForm::dots : ChannelsForm::groups;
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
  bool ahead;  // the input is fetched ahead
  Pixels output;
  int64_t kernel_h, kernel_w;
  int64_t input_floats, weight_floats, floats;
  int64_t tasks(const Correlation& c) const {
    return c.batch * blocks * ceil_div(c.h.out, block.rows) * ceil_div(c.w.front().out, block.columns);
  }
};

// Returns how many pixels a tile of groups, or of dots, computes.
inline int64_t tile_pixels(const Correlation& c, int64_t lanes, bool dots) {
  if (dots) return 3;
  return c.out_channels > lanes || lanes < 8 ? 12 * lanes / kGroupBlock : 8;
}

// Returns the floats of the packed weights of kGroupBlock output channels of a group.
inline int64_t group_block_floats(const Correlation& c, int64_t kernel_h, int64_t kernel_w) {
  return kernel_h * kernel_w * c.in_channels * kGroupBlock;
}

// Lay out depthwise and narrow groups, and wide ones.
bool lay_out_channels(const Correlation& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                      ChannelsLayout* layout);
bool lay_out_groups(const Correlation& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                    ChannelsLayout* layout);
// Lays out whichever of the two forms computes the work.
inline bool lay_out_channels_of(const Correlation& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                                ChannelsLayout* layout) {
  const bool narrow = channels_form(c, lanes) == ChannelsForm::narrow;
  return (narrow ? lay_out_channels : lay_out_groups)(c, kernel_h, kernel_w, lanes, threads, layout);
}

}  // namespace groupwise
