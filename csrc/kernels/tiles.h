// The sizes of tiles that depend on the number of vector registers: the sums, what feeds them and a factor must fit.
#pragma once
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

constexpr bool kManyRegisters = kRegisters >= 32;

// The taps of a row that a tile of kPixelTile pixels keeps: of a depthwise convolution, and of groups.
constexpr int kDepthwiseTaps = kManyRegisters ? 7 : 5, kGroupTaps = 3;
// The pixels of a tile of dot products, by 4 output channels.
constexpr int kDotPixels = kManyRegisters ? 4 : 3;
// The sums of a tile of a wide group's outputs: vectors of output channels by pixels. More pixels need more addresses than
// x86 has registers for: 14 took 8 % more time.
constexpr int kGroupSums = 12;
// The output channels of a tile of a weight's gradient from copied pixels, by 3 vectors of input channels.
constexpr int kOuterOutputs = kManyRegisters ? 8 : 4;
// The rows of taps in a tile of a weight's gradient along the width, and the taps of a row by so many rows.
constexpr int kTapRows = kManyRegisters ? 5 : 3;
constexpr int tap_columns_of(int rows) { return kManyRegisters ? (rows > 3 ? 5 : 7) : rows > 2 ? 4 : 6; }

}  // namespace groupwise::GW_TARGET
