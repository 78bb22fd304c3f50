// Gradients of the weight of bfloat16 layers whose channels are neighbours in memory: sums, in float32, of products of pairs of
// positions. The positions of all samples are divided into two halves, and a pair has one of each, so that the taps of a pair read
// pairs too.
#pragma once

#include "bfloat16.h"
#include "kernels/layout.h"

namespace groupwise {

// The most vectors of outputs, and inputs, of a unit: to copy both to scratch takes little time beside their products.
constexpr int64_t kMostLowVectors = 4, kMostLowInputs = 96;

// What a task sums: channels of a unit over one of `parts` parts of the pairs. A unit has the inputs and outputs of one group, or some
// of them; or, where groups share vectors, the channels of some whole groups, each of which meets those of its own group. A band of
// outputs is copied to scratch, pair by pair: the gradient as [vector][row][column][lane][2], and the image in the same way, or as
// [row][column][input][2] where its numbers are broadcast.
struct LowGradient {
  Problem problem;
  Strides x_strides, y_strides;
  int64_t lanes;
  bool shared;              // groups share vectors
  int64_t inputs, outputs;  // of a unit; outputs in whole vectors; inputs of a group where groups share vectors
  int64_t input_blocks, output_blocks;
  int64_t rows, columns;  // of a band
  int64_t parts;
  const Bfloat16* x = nullptr;
  const Bfloat16* y = nullptr;
  Bfloat16* w = nullptr;
  WeightStrides w_strides;
  float* sums = nullptr;  // [part][unit][tap][input][output]

  int64_t taps() const { return problem.h.kernel * problem.w.kernel; }
  int64_t units() const { return (shared ? 1 : problem.groups) * input_blocks * output_blocks; }
  int64_t tasks() const { return units() * parts; }
  int64_t sums_of_unit() const { return taps() * inputs * outputs; }

  // Rows of two outputs that are neighbours begin so far apart in scratch: a stride leaves out what no tap reads.
  static int64_t span(const Axis& a) { return (a.kernel - 1) * a.dilation + 1; }
  static int64_t step(const Axis& a) { return std::min(a.stride, span(a)); }
  // Positions in scratch that `outputs` outputs read.
  static int64_t reads(const Axis& a, int64_t outputs) { return (outputs - 1) * step(a) + span(a); }
  // The position in the image of position `i` in scratch, of a band that begins with output `first`.
  static int64_t read_at(const Axis& a, int64_t first, int64_t i) {
    return (first + i / step(a)) * a.stride + i % step(a) - a.pad;
  }

  int64_t x_pixel() const { return 2 * (shared ? lanes : round_up(inputs, lanes)); }
  int64_t x_planes() const { return shared ? outputs / lanes : 1; }
  int64_t x_numbers() const { return x_planes() * reads(problem.h, rows) * reads(problem.w, columns) * x_pixel(); }
  int64_t y_begins() const { return round_up(x_numbers(), 32); }
  int64_t numbers() const { return y_begins() + 2 * outputs * rows * columns; }
};

// Where one half of a band begins: output `row` of sample n, and its `column`.
struct LowHalf {
  int64_t n, row, column;
  bool there;  // false for the second half of a position that is left
};

// Calls f(first half, second half, rows, columns) for the bands of a part. Rows of all samples are halved, then the columns of a row
// that is left; a last position may be left alone.
template <class F>
void each_band(const LowGradient& g, int64_t part, F&& f) {
  const Problem& p = g.problem;
  const int64_t height = p.h.out, all = p.batch * height, half = all / 2, width = p.w.out;
  const auto at = [&](int64_t row, int64_t column) { return LowHalf{row / height, row % height, column, true}; };
  const auto columns = [&](int64_t row, int64_t other, int64_t rows, int64_t first, int64_t last, int64_t apart) {
    for (int64_t q = first; q < last; q += g.columns) f(at(row, q), at(other, q + apart), rows, std::min(g.columns, last - q));
  };
  const int64_t last = half * (part + 1) / g.parts;
  for (int64_t row = half * part / g.parts, rows; row < last; row += rows) {
    rows = std::min({g.rows, last - row, height - row % height, height - (row + half) % height});
    columns(row, row + half, rows, 0, width, 0);
  }
  if (all % 2 == 0) return;
  const bool shared = half == 0;  // by all parts
  if (!shared && part + 1 < g.parts) return;
  const int64_t middle = width / 2;
  columns(all - 1, all - 1, 1, shared ? middle * part / g.parts : 0, shared ? middle * (part + 1) / g.parts : middle, middle);
  if (width % 2 == 0 || part + 1 < g.parts) return;
  f(at(all - 1, width - 1), LowHalf{0, 0, 0, false}, int64_t{1}, int64_t{1});
}

// Returns why such a gradient is not computed, or null.
const char* refuses_low_gradient(const Problem& p, int64_t lanes);
// Returns false if even the smallest band exceeds the scratch.
bool lay_out(const Problem& p, int64_t lanes, int64_t threads, LowGradient* g);

}  // namespace groupwise
