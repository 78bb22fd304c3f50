// Lays out where a kernel keeps its block of the input and the output in scratch, and divides the work into blocks that fit.
#pragma once

#include <algorithm>

#include "problem.h"

namespace groupwise {

inline constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline constexpr int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

// The most products that one accumulator sums in a run. Longer runs round more than PyTorch's blocked sums: one run over the
// 6144 products of a 1-D layer of 48 channels by 128 taps had 15 times PyTorch's error.
constexpr int64_t kRun = 192;
// The same for a grad_input with a stride or a dilation, which PyTorch sums tap by tap: runs of 192 had 2.3 times PyTorch's
// root mean square error, runs of 64 have 1.4 times. Shorter runs take 0-13 % more time with a stride, 0-20 % with a dilation,
// and 20-35 % with neither, where PyTorch's own runs are as long.
constexpr int64_t kGradInputRun = 64;
// The same for a grad_weight of copied pixels. Where all products have one sign, runs of 192 had 3 times the error of PyTorch
// on a processor with AVX-512. Runs of 64 take 0-3 % more time, of 32 up to 10 % for depthwise layers. Pixels that are read in
// place keep runs of 192, since 64 take 5-15 % more time there (AMD EPYC, one core, 14x14 to 56x56, 1 and 8 samples).
constexpr int64_t kGradWeightRun = 64;
// Returns how many channels of a phase one accumulator sums: at most what `longest_run` allows, at least one, in even runs.
inline int64_t run_of_channels(const Correlation& c, const Phase& w) {
  const int64_t most = std::max<int64_t>(1, c.longest_run / std::max<int64_t>(1, c.h.taps * w.taps));
  return ceil_div(c.in_channels, ceil_div(c.in_channels, most));
}

// A task computes `rows` x `columns` outputs (of each phase) of `groups` groups of one sample.
struct Block {
  int64_t rows, columns, groups;
};

// Zero-padded input rows in scratch, [channel][row][phase][column]: padded column x of the block lies in phase
// x % stride at x / stride, so that a tap of any stride reads neighbours.
struct Plane {
  int64_t low_h, low_w, rows, stride, phase, row, channel;
  int64_t padded;  // floats of a phase that are input or zero; tiles read beyond them and do not use it
  // The block is as wide as the image, or is all of it. The padding beside the rows, or all padding, is then the same in every
  // task and is zeroed once.
  bool wide, whole;
};

// Output rows in scratch, [channel][row][phase][column], where tiles cannot write the output in place: it interleaves several
// phases, or its channels are neighbours.
struct Stage {
  int64_t phase, row, channel;
};

// Output rows and taps that read the same input rows: output j (`apart` rows from the next) and tap t meet row j + t of a
// sequence `pitch` rows apart, when taps run in `residues` turns. All are 1 except for strided or dilated convolutions.
struct RowSharing {
  int64_t apart, residues, pitch;
};

// Output rows that a tile computes together where channels are few, and for a single input channel.
constexpr int kRowTile = 4, kSingleRows = 7;

// Tells whether the tiles of a single input channel (planar_single-inl.h) can compute `rows` rows of outputs. They support 1 to
// 5 and 7 rows of taps with stride 1, 3, 5 and 7 with stride 2, and 3 rows only with 3 columns; and they need four rows or more
// that share their inputs.
inline bool takes_single(const Phase& h, const Phase& w, int64_t rows) {
  if (rows / h.spacing < 4 || (h.taps == 3 && w.taps != 3)) return false;
  if (h.stride == 1) return h.taps >= 1 && h.taps <= 7 && h.taps != 6;
  return h.stride == 2 && h.spacing == 1 && (h.taps == 3 || h.taps == 5 || h.taps == 7);
}

struct CorrelationLayout {
  Block block;
  RowSharing sharing;
  Plane plane;
  bool staged;
  Stage stage;
  int64_t input_floats, output_floats;
  std::vector<std::vector<int32_t>> columns;  // for each phase of the width: where tap t reads, from the row's start
  int64_t tasks(const Correlation& c) const {
    return c.batch * ceil_div(c.groups, block.groups) * ceil_div(c.h.out, block.rows) *
           ceil_div(c.w.front().out, block.columns);
  }
};

// Returns false if even the smallest block exceeds the scratch, as all `lay_out` functions do.
bool lay_out(const Correlation& c, int64_t lanes, int64_t threads, CorrelationLayout* layout);

// The channels of a channels-last tensor that a task computes: one cache line.
constexpr int64_t kChannelBlock = 16;
// The outputs that a tile computes together.
constexpr int64_t kPixelTile = 8;

// Pixels in scratch, [row][column][width].
struct Pixels {
  int64_t rows, columns, width;
};

// The output channels of a group whose weights are packed side by side.
constexpr int64_t kGroupBlock = 16;

// Tells whether lanes-inl.h can spread the inputs of a vector of output channels: it holds whole groups, or is of one group.
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

// A task sums `outputs` output channels of `block.groups` groups over one of `parts` parts of the samples and positions.
// `run.cpp` adds the parts.
struct GradWeightLayout {
  Block block;
  int64_t outputs, parts;
  Plane input, output;  // of the input, and of grad_output
  int64_t input_floats, output_floats, floats;
  std::vector<int32_t> columns;  // where tap t of a row reads
  std::vector<int32_t> slots;    // where each (input channel, tap) reads
  int64_t tasks(const Problem& p) const { return parts * ceil_div(p.out_channels, outputs) * ceil_div(p.groups, block.groups); }
};

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightLayout* layout);

// The form that reads channels-last tensors in place, with lanes along the output channels of depthwise and narrow groups. A
// task sums one of `blocks` blocks of groups, the last of which is what is left, over one of `parts` parts.
struct GradWeightNarrowLayout {
  Block block;
  int64_t blocks, parts, floats;
  int64_t tasks(const Problem&) const { return parts * blocks; }
};

// Tells whether that form computes the work.
inline bool narrow(const GradWeight& work, int64_t lanes) {
  const Problem& p = work.problem;
  if (work.input_strides.c != 1 || work.grad_output_strides.c != 1 || p.groups * p.out_channels < 8) return false;
  // Measured on one core, in ms, in place | copied: depthwise 3x3 28x28 0.128 | 0.158, of stride 2 0.062 | 0.107, 14x14 0.053 |
  // 0.057, but 7x7 56x56 0.633 | 0.494; groups of 4 channels 0.539 | 0.782, of 8 0.657 | 0.402.
  if (depthwise(p)) return p.h.kernel * p.w.kernel <= 9;
  return p.out_channels < 8 && lanes_fit(p.in_channels, p.out_channels, lanes);
}
bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightNarrowLayout* layout);

// The form with lanes along the input channels, which are copied to pixels in scratch. So is a depthwise convolution's planar
// grad_output.
struct GradWeightChannelsLayout {
  Block block;
  bool depthwise, staged;
  int64_t outputs, parts;
  Pixels input, output;
  int64_t input_floats, output_floats, floats;
  std::vector<int32_t> slots;  // where each (tap, vector of input channels) reads
  int64_t tasks(const Problem& p) const {
    return parts * (depthwise ? ceil_div(p.groups, kChannelBlock) : p.groups * ceil_div(p.out_channels, outputs));
  }
};

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightChannelsLayout* layout);

}  // namespace groupwise
