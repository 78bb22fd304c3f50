// The gradient of a weight as a sum over blocks of positions of products of matrices: output channels by positions times
// positions by input channels, for each row of taps.
#pragma once
#include "kernels/brgemm/layout.h"
#include "kernels/brgemm/product.h"
#include "kernels/block_sum-inl.h"
#include "kernels/pack-inl.h"

namespace groupwise::GW_TARGET {

// A block of outputs of one sample, counted in the image.
struct OutputBlock {
  int64_t row, column, rows, columns;
};

// Copies the pixels that one row of taps reads, side by side for each output: to[output][tap][channel]. `from` is where the first
// tap of the first output reads.
inline void gather(const Problem& p, const BrgemmGradLayout& l, const OutputBlock& b, const float* from, int64_t channels,
                   float* to) {
  const int64_t width = l.input.width;
  for (int64_t r = 0; r < b.rows; r++)
    for (int64_t x = 0; x < b.columns; x++) {
      const float* pixel = from + (r * p.h.stride * l.input.columns + x * p.w.stride) * width;
      for (int64_t k = 0; k < p.w.kernel; k++, to += channels) copy(to, pixel + k * p.w.dilation * width, channels);
    }
}

// Writes the sums [output][row of taps][column of taps][channel] to the weight, or its part.
inline void write_sums(const Problem& p, const WeightStrides& s, const float* sums, int64_t outputs, int64_t channels,
                       float* to) {
  const int64_t taps = p.h.kernel * p.w.kernel;
  if (taps == 1 && s.o == 1) {
    for (int64_t c = 0; c < channels; c += kLanes)
      split_pixels(to + c * s.c, s.c, sums + c, channels, std::min<int64_t>(kLanes, channels - c), outputs);
    return;
  }
  for (int64_t o = 0; o < outputs; o++, sums += taps * channels, to += s.o) {
    if (s.c != 1 && s.w == 1 && s.h == p.w.kernel) {
      for (int64_t c = 0; c < channels; c += kLanes)
        split_pixels(to + c * s.c, s.c, sums + c, channels, std::min<int64_t>(kLanes, channels - c), taps);
      continue;
    }
    for (int64_t t = 0; t < taps; t++) {
      float* at = to + t / p.w.kernel * s.h + t % p.w.kernel * s.w;
      const float* from = sums + t * channels;
      if (s.c == 1) {
        copy(at, from, channels);
      } else {
        for (int64_t c = 0; c < channels; c++) at[c * s.c] = from[c];
      }
    }
  }
}

// Runs tasks [begin, end). The sums go to grad_weight, or to their place in `parts` if there are several parts.
void grad_weight_brgemm(const GradWeight& work, const BrgemmGradLayout& l, int64_t begin, int64_t end, float* scratch,
                        float* parts) {
  const Multiply multiply = product().multiply;
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  const int64_t by_o = ceil_div(p.out_channels, l.outputs), by_c = ceil_div(p.in_channels, l.channels);
  const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
  const int64_t image_blocks = p.batch * by_h * by_w, taps = p.h.kernel * p.w.kernel;
  float* gathered = scratch + l.input_floats;
  float* turned = gathered + l.gather_floats;
  float* sums = turned + l.output_floats;
  for (int64_t task = begin; task < end; task++) {
    const int64_t part = task % l.parts, c = task / l.parts % by_c * l.channels, o = task / (l.parts * by_c) % by_o * l.outputs;
    const int64_t group = task / (l.parts * by_c * by_o);
    const int64_t outputs = std::min(l.outputs, p.out_channels - o), channels = std::min(l.channels, p.in_channels - c);
    const int64_t row_of_taps = p.w.kernel * channels, per_output = p.h.kernel * row_of_taps;
    const int64_t first = part * image_blocks / l.parts, last = (part + 1) * image_blocks / l.parts;
    for (int64_t at = first; at < last; at++) {
      const OutputBlock b{at / by_w % by_h * l.block.rows, at % by_w * l.block.columns,
                          std::min(l.block.rows, p.h.out - at / by_w % by_h * l.block.rows),
                          std::min(l.block.columns, p.w.out - at % by_w * l.block.columns)};
      const int64_t n = at / (by_w * by_h), row = b.row * p.h.stride - p.h.pad, column = b.column * p.w.stride - p.w.pad;
      const int64_t positions = b.rows * b.columns;
      const float* x = work.input + n * xs.n + (group * p.in_channels + c) * xs.c;
      const float* go = work.grad_output + n * gs.n + (group * p.out_channels + o) * gs.c + b.row * gs.h + b.column * gs.w;
      // Every block of input channels reads the same grad_output.
      if (work.sums && c == 0)
        add_block(go, gs, b.rows, b.columns, outputs, work.sums + (part * p.groups + group) * p.out_channels + o);
      int64_t g_row = gs.c;
      if (l.transposed) {
        g_row = round_up(positions, kLanes);
        for (int64_t r = 0; r < b.rows; r++)
          for (int64_t v = 0; v < outputs; v += kLanes) {
            const int64_t some = std::min<int64_t>(kLanes, outputs - v);
            float* to = turned + v * g_row + r * b.columns;
            if (gs.c == 1) {
              split_pixels(to, g_row, go + r * gs.h + v, gs.w, some, b.columns);
            } else {
              for (int64_t i = 0; i < some; i++) copy(to + i * g_row, go + r * gs.h + (v + i) * gs.c, b.columns);
            }
          }
        go = turned;
      }
      int64_t x_row = xs.w;
      if (l.in_place) {
        x += row * xs.h + column * xs.w;
      } else {
        Pixels pixels = l.input;
        pixels.rows = (b.rows - 1) * p.h.stride + (p.h.kernel - 1) * p.h.dilation + 1;
        pack_pixels(pixels, xs, p.h.in, p.w.in, x, channels, row, column, scratch);
        x = scratch;
        x_row = l.input.width;
      }
      for (int64_t kh = 0; kh < p.h.kernel; kh++) {
        // Taps that meet padding alone add nothing, not even where grad_output is infinite.
        const Range there = outputs_inside(row + kh * p.h.dilation, 0, p.h.stride, b.rows, p.h.in);
        float* to = sums + kh * row_of_taps;
        if (there.first == there.last) {
          if (at == first)
            for (int64_t i = 0; i < outputs; i++) zero(to + i * per_output, row_of_taps);
          continue;
        }
        const float* from = x;
        if (l.gathered) {
          gather(p, l, b, scratch + kh * p.h.dilation * l.input.columns * l.input.width, channels, gathered);
          from = gathered;
          x_row = row_of_taps;
        }
        multiply(outputs, row_of_taps, positions, g_row, x_row, per_output, at > first, go, from, to);
      }
    }
    const int64_t floats = p.groups * p.out_channels * p.in_channels * taps;
    const bool whole = l.parts == 1;
    const WeightStrides& s = whole ? work.weight_strides : dense_weight_strides(p, false);
    write_sums(p, s, sums, outputs, channels,
               (whole ? work.grad_weight : parts + part * floats) + group * s.group + o * s.o + c * s.c);
  }
  if (product().release) product().release();
}

}  // namespace groupwise::GW_TARGET
