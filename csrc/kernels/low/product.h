// Products of bfloat16 pixels and a bfloat16 weight, with float32 sums: 1x1 convolutions in channels_last, and linear layers.
#pragma once

#include "bfloat16.h"
#include "kernels/norm/norm.h"

namespace groupwise {

// y[pixel][o] = after(before(bias[o] + sum over i of x[pixel][i] * weight[o][i]) + residual[pixel][o]). Pixels are x_pixel, or
// y_pixel, numbers apart. Outputs are computed in blocks of 4 vectors; the weight of each is packed as [pair of inputs][output][2],
// and its outputs end with zeros.
struct LowProduct {
  int64_t pixels, inputs, outputs;
  int64_t x_pixel, y_pixel;
  Activate before, after;
  const Bfloat16* packed = nullptr;
  const float* bias = nullptr;  // of whole blocks
  const Bfloat16* x = nullptr;
  const Bfloat16* residual = nullptr;  // or null; it lies as y does, and may be y
  Bfloat16* y = nullptr;
};

// The outputs of a block.
inline int64_t low_block(int64_t lanes) { return 4 * lanes; }

// Fills round_up(outputs, low_block(lanes)) * inputs numbers from a weight of [output][input]. The inputs are even in number.
void pack_low_product(int64_t lanes, int64_t outputs, int64_t inputs, const Bfloat16* weight, Bfloat16* packed);

struct Kernels;
void multiply_low(const LowProduct& work, const Kernels& target, const NormRun& run);

}  // namespace groupwise
