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

// Output rows that a tile computes together where channels are few, and for a single input channel.
constexpr int kRowTile = 4, kSingleRows = 7;

// Tells whether the tiles of a single input channel (single-inl.h) can compute `rows` rows of outputs. They support 1 to
// 5 and 7 rows of taps with stride 1, 3, 5 and 7 with stride 2, and 3 rows only with 3 columns; and they need four rows or more
// that share their inputs.
inline bool takes_single(const Phase& h, const Phase& w, int64_t rows) {
  if (rows < 4 * h.spacing || (h.taps == 3 && w.taps != 3)) return false;
  if (h.stride == 1) return h.taps >= 1 && h.taps <= 7 && h.taps != 6;
  return h.stride == 2 && h.spacing == 1 && (h.taps == 3 || h.taps == 5 || h.taps == 7);
}

// The most phases of the width whose outputs a tile weaves into a row, and the most rows of taps of such a tile.
constexpr int kWovenPhases = 4, kWovenTaps = 4;

// How a correlation is computed that needs no padding because its kernel and its image are the same size: each output sums
// whole rows of the image (a forward), or each input is spread over a whole image (its gradient). Both read in place.
enum class Whole { no, sum, spread };

struct CorrelationLayout {
  Whole whole;
  Block block;
  Strip strip;
  RowSharing sharing;
  Plane plane;
  bool woven;     // tiles compute all phases of the width and write whole rows (woven-inl.h)
  bool in_place;  // the tensor's one row is read where it is
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

// A task sums `outputs` output channels of `block.groups` groups over one of `parts` parts of the samples and positions.
// csrc/kernels/work.cpp adds the parts.
struct GradWeightLayout {
  Block block;
  bool in_place;  // the one rows of both tensors are read where they are
  bool clip;      // the positions of each tile's taps are clipped to those inside the input
  int64_t outputs, parts;
  Plane input, output;  // of the input, and of grad_output
  int64_t input_floats, output_floats, floats;
  std::vector<int32_t> columns;  // where tap t of a row reads
  std::vector<int32_t> slots;    // where each (input channel, tap) reads
  int64_t tasks(const Problem& p) const { return parts * ceil_div(p.out_channels, outputs) * ceil_div(p.groups, block.groups); }
};

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightLayout* layout);

}  // namespace groupwise
