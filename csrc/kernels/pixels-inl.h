// Tiles of pixels that continue over the ends of rows, so that a small image leaves no accumulator idle.
#pragma once
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// A block of `rows` x `columns` outputs: where the first reads and writes, and the floats between rows and between pixels.
struct PixelBlock {
  const Real* x;
  int64_t x_row, x_pixel;
  Real* y;
  int64_t y_row, y_pixel;
  int64_t rows, columns;
};

// Calls f(inputs, outputs, left) for each PX pixels, of which `left` or all are new: the last tile repeats the last pixel.
template <int PX, class F>
GW_INLINE void each_tile(const PixelBlock& b, F&& f) {
  const int64_t pixels = b.rows * b.columns;
  int64_t row = 0, column = 0;
  for (int64_t i = 0; i < pixels; i += PX) {
    const Real* in[PX];
    Real* out[PX];
    unroll<PX>([&](auto p) GW_LAMBDA {
      in[p] = b.x + row * b.x_row + column * b.x_pixel;
      out[p] = b.y + row * b.y_row + column * b.y_pixel;
      if (i + p + 1 < pixels && ++column == b.columns) column = 0, row++;
    });
    f(in, out, pixels - i);
  }
}

}  // namespace groupwise::GW_TARGET
