// Convolutions of bfloat16 images in channels_last whose groups have as many outputs as inputs. Sums are float32, and each result is
// rounded once, behind the epilogue.
#pragma once

#include "bfloat16.h"
#include "kernels/norm/norm.h"

namespace groupwise {

// Channels are neighbours in memory. `packed` has, for each block of 2 * lanes channels, their bias and their taps, row by row; of
// each the even channels come first. The last block begins early where it would end late. Groups of several channels have `pairs`
// instead: for each vector of outputs and each tap [pair of inputs][output][2]; a group fills some vectors, or a vector holds some
// groups, and the last one begins early too. The pairs of an output vector are the rows of AMX's tiles as well.
struct LowGrouped {
  int64_t batch, channels, group = 1;  // the channels of a group
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

  // A group, or a vector of groups.
  int64_t units() const { return group > 16 ? channels / group : (channels + 15) / 16; }
  int64_t tasks() const { return rows > 0 ? batch * units() * ((h.out + rows - 1) / rows) : batch * parts * h.out; }
};

// Returns how many floats the packed weights take, and fills them; the weight has [channel][row][column], and a bias may be null.
int64_t packed_low_floats(int64_t lanes, int64_t channels, int64_t taps);
void pack_low(int64_t lanes, int64_t channels, int64_t taps, const float* weight, const float* bias, float* packed);
// The same of pairs, from a weight of [output][input][row][column]: as many numbers as that has with outputs in whole vectors. There
// is a vector of outputs or more.
void pack_low_pairs(int64_t lanes, int64_t channels, int64_t group, int64_t taps, const Bfloat16* weight, Bfloat16* packed);

struct Kernels;
void correlate_low(LowGrouped work, const Kernels& target, const NormRun& run);

}  // namespace groupwise
