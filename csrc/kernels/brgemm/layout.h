// Lays out the work of brgemm, which is a sum of products of matrices.
#pragma once

#include "kernels/layout.h"

namespace groupwise {

// The output channels of one product at most, and its pixels: along its rows, or along its columns in products of planes. The sums
// of such a tile stay in L1, and its factors in L2.
constexpr int64_t kProductChannels = 64, kProductRows = 128, kProductPixels = 64;

// A task computes a block of outputs of channels of a group, mostly of all. Its scratch holds the zero-padded input pixels, or inputs
// of planes, if they are packed, and the outputs, if they are staged.
struct BrgemmLayout {
  Block block;
  // A product's rows are output channels and its columns pixels: a 1x1 layer of contiguous tensors. Inputs that do not follow each
  // other, as with a stride, are gathered first (`packs_input`). Else its rows are pixels, and its columns output channels.
  bool planes;
  bool packs_input, packs_weight, staged;
  int64_t gathered;      // input channels of planes that are copied at a time: whole runs
  bool joined;           // the block's rows, with the padding between them, are one row of pixels
  int64_t outputs;       // output channels of a block of weights
  int64_t rows;          // pixels of a product
  int64_t task_outputs;  // output channels of a task, whose blocks of weights begin with it
  // All output channels of a few pixels follow each other, and not all pixels of a block of output channels: for weights that stay
  // in the cache.
  bool channels_inside;
  int64_t low_w;
  Pixels input, output;
  int64_t input_floats, floats;
  int64_t weight_floats;  // of one group's packed weights
  // Returns the blocks of weights of a task, and of a group.
  int64_t task_blocks() const { return ceil_div(task_outputs, outputs); }
  int64_t blocks(const CorrelationShape& c) const { return ceil_div(c.out_channels, task_outputs) * task_blocks(); }
  int64_t pack_tasks(const CorrelationShape& c) const { return c.groups * blocks(c); }
  int64_t tasks(const CorrelationShape& c) const {
    return c.batch * c.groups * ceil_div(c.h.out, block.rows) * ceil_div(widest(c.w), block.columns) *
           ceil_div(c.out_channels, task_outputs);
  }
};

// A task sums `outputs` output channels x `channels` input channels of a group, all taps, over one part of the positions.
struct BrgemmGradLayout {
  Block block;
  int64_t outputs, channels, parts;
  bool in_place;    // pixels of the input are read in place
  bool gathered;    // pixels are copied once more, for each row of taps
  bool transposed;  // grad_output is copied to one row a channel
  Pixels input;
  int64_t input_floats, gather_floats, output_floats, floats;
  int64_t tasks(const Problem& p) const {
    return p.groups * ceil_div(p.out_channels, outputs) * ceil_div(p.in_channels, channels) * parts;
  }
};

// Returns the weight's gradient of a 1x1 layer of pixels with the tensor of fewer channels as grad_output, which is turned.
GradWeight with_fewer_turned(const GradWeight& work);

bool lay_out_brgemm(const Correlation& c, int64_t lanes, int64_t threads, BrgemmLayout* layout);
bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, BrgemmGradLayout* layout);

}  // namespace groupwise
