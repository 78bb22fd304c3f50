// Lays out the work of gemm: a product of pixels by input channels with input by output channels, of packed weights.
#pragma once

#include "kernels/layout.h"

namespace groupwise {

// The vectors of output channels of a panel of weights: two, or what is left where that is one or three.
constexpr int64_t kPanelVectors = 2;

// Returns the most pixels of a tile by so many vectors: 12 sums fill 16 registers, with weights and an input. One vector takes 8
// pixels, since fewer than 8 sums wait for each other.
constexpr int gemm_pixels(int64_t lanes, int64_t vectors) {
  constexpr int kMost[] = {8, 6, 4}, kMostOfMany[] = {12, 12, 8};
  return (lanes >= 16 ? kMostOfMany : kMost)[vectors - 1];
}

// A panel: output channels [first, first + vectors * lanes) of a group, some of which may not exist.
struct Panel {
  int64_t first, vectors;
};

// A task computes a block of pixels of some output channels of a group. It needs no scratch.
struct GemmLayout {
  Block block;
  int64_t channels;  // output channels of a task: whole panels, but for the last task
  int64_t lanes;
  int64_t pixels;         // the most of a tile
  bool ahead;             // tensors are fetched ahead
  int64_t weight_floats;  // of one group's packed weights

  // Returns the parts of a group's output channels, each of which is a task's, the panels of such a part, and of a group.
  int64_t parts(const CorrelationShape& c) const { return ceil_div(c.out_channels, channels); }
  int64_t panels(int64_t outputs) const { return std::max<int64_t>(1, ceil_div(outputs, lanes) / kPanelVectors); }
  int64_t panels(const CorrelationShape& c) const {
    const int64_t whole = parts(c) - 1;
    return whole * panels(channels) + panels(c.out_channels - whole * channels);
  }
  // Returns a panel of a part.
  Panel panel(const CorrelationShape& c, int64_t part, int64_t number) const {
    const int64_t begin = part * channels, outputs = std::min(channels, c.out_channels - begin);
    const int64_t first = number * kPanelVectors;
    return {begin + first * lanes, number + 1 < panels(outputs) ? kPanelVectors : ceil_div(outputs, lanes) - first};
  }
  int64_t pack_tasks(const CorrelationShape& c) const { return c.groups * panels(c); }
  int64_t tasks(const CorrelationShape& c) const {
    return c.batch * c.groups * parts(c) * ceil_div(c.h.out, block.rows) * ceil_div(c.w.front().out, block.columns);
  }
};

void lay_out_gemm(const CorrelationShape& c, int64_t lanes, int64_t threads, GemmLayout* layout);

}  // namespace groupwise
