// What a task of the narrow kernel reads and writes.
#pragma once
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// The pixels that a task reads, in place or in scratch; x is the first.
struct Image {
  const Real* x;
  int64_t row, pixel, height, width;
  int64_t left, right;  // columns that are no padding
};

// Vectors of output channels of one block: their packed weights and bias, and where the outputs go.
struct Vectors {
  const Real* w;
  const Real* bias;
  int64_t bias_vector;
  Real* y;
  int64_t count, a_group;  // a_group: how many share their inputs
};

// Outputs of a task: `rows` rows, and in each phase at most `columns` columns from `column` on. The first one reads the image
// from at_row and, plus the phase's offset, at_column on; y_row and y_pixel are the floats between outputs.
struct Outputs {
  int64_t rows, column, columns, at_row, at_column, y_row, y_pixel;
};

// One axis of an image block: outputs read the image at first + i * stride + tap * dilation.
struct Reading {
  int64_t first, count, stride, dilation, size;
  int64_t x, go;  // floats between the inputs, and the grad_outputs, of neighbouring outputs
  int64_t x_tap;  // floats between the inputs of neighbouring taps
};

}  // namespace groupwise::GW_TARGET
