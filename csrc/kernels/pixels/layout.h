// Lays out the weight's gradient from copied pixels.
#pragma once

#include "kernels/layout.h"

namespace groupwise {

// Has lanes along the input channels, which are copied to pixels in scratch. So is a depthwise convolution's planar
// grad_output.
struct GradWeightChannelsLayout {
  Block block;
  bool depthwise, staged;
  bool in_place;  // the input's channels are read where they are; the last vector of a group starts early rather than end late
  bool clip;      // the positions of each tile's taps are clipped to those inside the input
  int64_t outputs, parts;
  Pixels input, output;
  int64_t input_floats, output_floats, floats;
  std::vector<int32_t> slots;  // where each (tap, vector of input channels) reads
  int64_t tasks(const Problem& p) const {
    return parts * (depthwise ? ceil_div(p.groups, kChannelBlock) : p.groups * ceil_div(p.out_channels, outputs));
  }
};

// Returns how many pixels apart panels lie that hold so many: an odd number of fours, as copies write to all panels in turn, and
// panels whole pages apart share a set of the L1 cache.
inline int64_t panel_pixels(int64_t positions) { return ceil_div(positions, 4) / 2 * 8 + 4; }

// Sums one tap, a block of positions at a time, from both tensors or copies of them. A task sums `outputs` output
// channels x `channels` input channels of a group over a part of the positions.
struct PanelsLayout {
  Block block;
  bool in_place;  // both tensors are read where they are
  int64_t outputs, channels, parts;
  int64_t run;       // positions at most that an accumulator sums
  int64_t together;  // tasks at most that read a block of positions before the next
  bool inside;       // their sums lie in the scratch
  int64_t input_floats, output_floats, floats;
  int64_t blocks(const Problem& p) const {
    return p.groups * ceil_div(p.out_channels, outputs) * ceil_div(p.in_channels, channels);
  }
  int64_t tasks(const Problem& p) const { return parts * blocks(p); }
  int64_t sums_floats() const { return outputs * channels; }  // of a task
};

// Returns false where more than one tap, or padding, is read, where a side has too few channels, and where contiguous rows are read with
// a stride.
bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, PanelsLayout* layout);
bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightChannelsLayout* layout);

}  // namespace groupwise
