// Lays out where the planar kernels keep their block of the input and the output in scratch.
#pragma once

#include "kernels/layout.h"

namespace groupwise {

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

// Output rows that a tile computes together where channels are few, and those of a single output channel.
constexpr int kRowTile = 4, kSingleRows = 10;

// Tells whether the tiles of a single output channel (single-inl.h) can compute `rows` rows of outputs. They support 1 to
// 5 and 7 rows of taps, with stride 2 not a single one, and 3 rows only with 3 columns; they need four rows or more that share
// their inputs, and all input channels in one run.
inline bool takes_single(const CorrelationShape& c, const Phase& h, const Phase& w, int64_t rows) {
  if (rows < 4 * h.spacing || (h.taps == 3 && w.taps != 3) || run_of_channels(c, h.taps * w.taps) < c.in_channels) return false;
  if (h.taps > 7 || h.taps == 6) return false;
  return h.stride == 1 ? h.taps >= 1 : h.stride == 2 && h.spacing == 1 && h.taps >= 2;
}
// Tells whether they take less time than tiles of four output channels, of which there are too few, or each meets few products (one
// channel to 4, 3x3, one core, GFLOP/s in the L1 cache: 168 instead of 134 with AVX-512, 125 instead of 73 with AVX2).
inline bool prefers_single(const CorrelationShape& c, const Phase& h) {
  return c.out_channels < 4 || (c.in_channels <= (h.taps <= 3 ? 4 : 1) && h.taps <= 5);
}

// The most phases of the width whose outputs a tile weaves into a row, and the most rows of taps of such a tile.
constexpr int kWovenPhases = 4, kWovenTaps = 4;

// How a correlation is computed that needs no padding because its kernel and its image are the same size: each output sums
// whole rows of the image (a forward), or each input is spread over a whole image (its gradient). Both read in place.
enum class Whole { no, sum, spread };

// The most taps of a row whose weights stay in registers, where rows are read and written in place.
constexpr int kFewTaps = 9;
// The largest stride of such rows.
constexpr int kMostStride = 4;

struct CorrelationLayout {
  Whole whole;
  bool lone_rows;  // each row meets one row of taps, and is read and written where it is (lone_rows-inl.h)
  Block block;
  Strip strip;
  RowSharing sharing;
  Plane plane;
  bool woven;     // tiles compute all phases of the width and write whole rows (woven-inl.h)
  bool in_place;  // the tensor's rows are read where they are
  bool staged;
  Stage stage;
  int64_t input_floats, output_floats;
  std::vector<std::vector<int32_t>> columns;  // for each phase of the width: where tap t reads, from the row's start
  int64_t tasks(const CorrelationShape& c) const {
    return c.batch * ceil_div(c.groups, block.groups) * ceil_div(c.h.out, block.rows) *
           ceil_div(c.w.front().out, block.columns);
  }
};

// Returns false if even the smallest block exceeds the scratch, as all `lay_out` functions do.
bool lay_out(const CorrelationShape& c, int64_t lanes, int64_t threads, CorrelationLayout* layout);

// A task sums `outputs` output channels of `block.groups` groups over one of `parts` parts of the samples and positions.
// csrc/kernels/work.cpp adds the parts.
struct GradWeightLayout {
  Block block;
  bool lone_rows;      // each row meets one row of taps, and is read where it is
  bool in_place;       // the one rows of both tensors are read where they are
  bool rows_in_place;  // the rows of grad_output are
  bool clip;           // the positions of each tile's taps are clipped to those inside the input
  int64_t outputs, parts;
  Plane input, output;  // of the input, and of grad_output
  int64_t input_floats, output_floats, floats;
  std::vector<int32_t> columns;  // where tap t of a row reads
  std::vector<int32_t> slots;    // where each (input channel, tap) reads
  int64_t tasks(const Problem& p) const { return parts * ceil_div(p.out_channels, outputs) * ceil_div(p.groups, block.groups); }
};

// Tells whether each row meets one row of taps, and is read where it is.
bool takes_lone_rows(const GradWeightShape& work, int64_t lanes);
bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightLayout* layout);

}  // namespace groupwise
