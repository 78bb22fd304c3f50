// Convolutions of bfloat16 images whose channels are neighbours in memory. Sums are float32, and each result is rounded once, behind
// the epilogue.
#pragma once

#include <algorithm>

#include "bfloat16.h"
#include "kernels/norm/norm.h"

namespace groupwise {

// A depthwise layer's `packed` has, for each block of 2 * lanes channels, their bias and their taps, row by row; of each the even
// channels come first. The last block begins early where it would end late. Groups of several channels have `pairs` instead: for each
// vector of outputs and each tap [pair of inputs][output][2]. A group has some vectors of outputs, the last of which begins early where
// it would end late; or a vector holds some groups of as many inputs as outputs, and the last of all vectors begins early. The pairs of
// an output vector are the rows of AMX's tiles as well. The padding may be negative.
struct LowGrouped {
  int64_t batch, channels, group = 1, inputs = 1;  // the outputs of all groups, and of one; the inputs of one
  Axis h, w;
  Strides x_strides, y_strides;
  Activate before, after;
  const float* packed = nullptr;
  const Bfloat16* pairs = nullptr;
  const float* bias = nullptr;  // beside pairs, of whole vectors
  const Bfloat16* x = nullptr;
  const Bfloat16* residual = nullptr;  // or null; it has the strides of y, and may be y
  Bfloat16* y = nullptr;
  int64_t blocks = 0, parts = 1;  // blocks of channels, and the parts that share them out
  int64_t rows = 0;               // of a band of outputs, which a task computes by AMX; 0: a task computes one row

  int64_t taps() const { return h.kernel * w.kernel; }
  // Vectors of outputs.
  int64_t vectors(int64_t lanes) const {
    return group >= lanes ? channels / group * ((group + lanes - 1) / lanes) : (channels + lanes - 1) / lanes;
  }
  // A group, or a vector of groups.
  int64_t units() const { return group > 16 ? channels / group : (channels + 15) / 16; }
  int64_t tasks() const { return rows > 0 ? batch * units() * ((h.out + rows - 1) / rows) : batch * parts * h.out; }
};

// How many neighbouring pixels a tile of one row computes: of 2 * lanes channels of a depthwise layer, and of groups of several. Images of
// 7, 14, 28, 56 and 112 columns divide into tiles of 7.
constexpr int low_pixels(int64_t lanes) { return lanes >= 16 ? 8 : 4; }
constexpr int kGroupedPixels = 7, kGroupedVectors = 2;

// Where the outputs of a vector, of groups of several channels, begin.
struct LowVector {
  int64_t channel, input;  // its first output of all, and the first input that it reads
  int64_t skipped;         // the lanes that the vector before has
};
inline LowVector vector_of(const LowGrouped& c, int64_t lanes, int64_t v) {
  if (c.group < lanes) {
    const int64_t channel = std::min(v * lanes, c.channels - lanes);
    return {channel, channel, v * lanes - channel};
  }
  const int64_t each = (c.group + lanes - 1) / lanes, group = v / each, first = v % each * lanes;
  const int64_t channel = std::min(first, c.group - lanes);
  return {group * c.group + channel, group * c.inputs, first - channel};
}

// Returns how many floats the packed weights of a depthwise layer take, and fills them; a bias may be null. Numbers are floats or
// Bfloat16.
int64_t packed_low_floats(int64_t lanes, const LowGrouped& work);
template <class Number>
void pack_low(const LowGrouped& work, int64_t lanes, const Number* weight, const WeightStrides& strides, const float* bias,
              float* packed);
// The same of pairs, of vectors [vectors.first, vectors.last) of those that `packed` begins with. There is a vector of outputs or more.
int64_t packed_low_pairs(int64_t lanes, const LowGrouped& work);
void pack_low_pairs(const LowGrouped& work, int64_t lanes, const Bfloat16* weight, const WeightStrides& strides, Range vectors,
                    Bfloat16* packed);

struct Kernels;
// Computes the work on run.threads threads, or on fewer where that takes less time.
void correlate_low(const LowGrouped& work, const Kernels& target, const NormRun& run);
// The same on exactly so many, of a work that is shared out for them.
void correlate_low_on(const LowGrouped& work, const Kernels& target, const NormRun& run);
// Returns the work as so many threads share it, and with the rows of a band where AMX computes it.
LowGrouped shared_out(LowGrouped work, const Kernels& target, int64_t threads);

}  // namespace groupwise
