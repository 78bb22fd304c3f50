// Correlation of few input channels with vectors along the output channels. The input is copied to planes, in which the pixels that
// a tap reads for a row of outputs are neighbours, whatever the stride and the memory format.
#pragma once

#include "kernels/activation-inl.h"
#include "kernels/finish.h"
#include "kernels/stem/layout.h"
#include "kernels/stem/planes-inl.h"

namespace groupwise::GW_TARGET {

// Where a tap reads the planes, from the place of an output's first tap, and which of the packed weights is its.
struct StemTap {
  int32_t x, weight;
};

// What a row of tiles begins and ends with: a bias or null, whether it adds to earlier sums, and bounds of the result or null.
struct StemEnds {
  const float* bias;
  bool add;
  const Clamp* clamp;
};

// Computes PX pixels by OV vectors of output channels, of which `left` pixels and `outputs` channels exist.
template <int OV, int PX>
GW_NOINLINE void stem_tile(const StemTap* taps, int64_t count, const float* x, const float* w, float* y, int64_t y_pixel,
                           int64_t left, int64_t outputs, const StemEnds& ends) {
  Vec sum[PX][OV];
  unroll<OV>([&](auto v) GW_LAMBDA {
    const Vec start =
        ends.bias ? load_some(ends.bias + v * kLanes, std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes)) : Vec{};
    unroll<PX>([&](auto p) GW_LAMBDA { sum[p][v] = start; });
  });
  for (int64_t t = 0; t < count; t++) {
    const float *in = x + taps[t].x, *weight = w + taps[t].weight * (OV * kLanes);
    Vec factor[OV];
    unroll<OV>([&](auto v) GW_LAMBDA {
      factor[v] = load(weight + v * kLanes);
      pin(factor[v]);
    });
    unroll<PX>([&](auto p) GW_LAMBDA {
      const Vec pixel = broadcast(in[p]);
      unroll<OV>([&](auto v) GW_LAMBDA { add_product(sum[p][v], factor[v], pixel); });
    });
  }
  if (ends.clamp) {
    const Clamp clamp = *ends.clamp;
    unroll<PX>([&](auto p) GW_LAMBDA { unroll<OV>([&](auto v) GW_LAMBDA { sum[p][v] = clamped(sum[p][v], clamp); }); });
  }
  unroll<PX>([&](auto p) GW_LAMBDA {
    unroll<OV>([&](auto v) GW_LAMBDA {
      if (p < left) put(y + p * y_pixel + v * kLanes, sum[p][v], outputs - v * kLanes, ends.add);
    });
  });
}

using StemTile = void (*)(const StemTap*, int64_t, const float*, const float*, float*, int64_t, int64_t, int64_t,
                          const StemEnds&);

// Returns the tile of an even number of pixels.
template <int OV>
StemTile stem_tile_of(int64_t pixels) {
  switch (pixels) {
    case 2: return stem_tile<OV, 2>;
    case 4: return stem_tile<OV, 4>;
    case 6: return stem_tile<OV, 6>;
  }
  if constexpr (kRegisters >= 32 || OV == 1) {
    switch (pixels) {
      case 8: return stem_tile<OV, 8>;
      case 10: return stem_tile<OV, 10>;
      case 12: return stem_tile<OV, 12>;
    }
  }
  if constexpr (kRegisters >= 32) return stem_tile<OV, 14>;
  return stem_tile<OV, 6>;
}

// Packs groups [begin, end) as [block of kStemVectors vectors][input channel][row][column of taps][output channel].
void pack_stem(const Correlation& c, const StemLayout& l, int64_t begin, int64_t end, float* packed) {
  const WeightStrides& s = c.weight_strides;
  const int64_t columns = c.w.front().taps, rows = c.h.taps, taps = c.in_channels * rows * columns;
  const bool one_row = s.w == 1 && (rows == 1 || s.h == columns) && (c.in_channels == 1 || s.c == rows * columns);
  for (int64_t group = begin; group < end; group++) {
    float* to = packed + group * l.weight_floats;
    zero(to, l.weight_floats);
    for (int64_t o = 0; o < c.out_channels; o += kStemVectors * kLanes) {
      const int64_t wide = std::min<int64_t>(kStemVectors * kLanes, l.outputs - o);
      const int64_t outputs = std::min(wide, c.out_channels - o);
      const float* from = c.weight + group * s.group + o * s.o;
      if (one_row) {
        for (int64_t t = 0; t < taps; t += kLanes)
          split_pixels(to + t * wide, wide, from + t, s.o, std::min<int64_t>(kLanes, taps - t), outputs);
        to += taps * wide;
        continue;
      }
      for (int64_t i = 0; i < c.in_channels; i++)
        for (int64_t kh = 0; kh < rows; kh++)
          for (int64_t kw = 0; kw < columns; kw++, to += wide)
            for (int64_t j = 0; j < outputs; j++) to[j] = from[i * s.c + kh * s.h + kw * s.w + j * s.o];
    }
  }
}

// The taps that some outputs of a row read inside the image, in the order [input channel][row][column].
struct StemTaps {
  StemTap* all;
  Range rows, columns;
  int64_t a_channel = -1;

  GW_INLINE void set(const Correlation& c, const StemLayout& l, const Phase& h, const Phase& w) {
    const Range of_h{h.index, h.index + h.taps}, of_w{w.index, w.index + w.taps};
    const int64_t found = h.taps * w.taps;
    if (found == a_channel && (found == 0 || (of_h.first == rows.first && of_h.last == rows.last &&
                                              of_w.first == columns.first && of_w.last == columns.last)))
      return;
    a_channel = found;
    rows = of_h;
    columns = of_w;
    StemTap* to = all;
    for (int64_t i = 0; i < c.in_channels && found > 0; i++)
      for (int64_t kh = rows.first; kh < rows.last; kh++)
        for (int64_t kw = columns.first; kw < columns.last; kw++, to++) {
          to->x = static_cast<int32_t>(i * l.plane.channel + kh * c.h.spacing * l.plane.row + l.columns[kw]);
          to->weight = static_cast<int32_t>((i * c.h.taps + kh) * c.w.front().taps + kw);
        }
  }
};

// Runs tasks [begin, end) of a forward correlation, whose weights are packed already.
void correlate_stem(const Correlation& c, const StemLayout& l, int64_t begin, int64_t end, float* scratch,
                    const float* packed) {
  const Phase& w = c.w.front();
  const int64_t by_w = ceil_div(w.out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const int64_t taps = c.in_channels * c.h.taps * w.taps;
  const Strides &xs = c.input_strides, &ys = c.output_strides;
  StemTaps table{reinterpret_cast<StemTap*>(scratch + l.input_floats), {}, {}};
  float* stage = scratch + l.input_floats + l.tap_numbers;
  // One accumulator's sums are clamped before they are stored.
  Clamp bounds;
  const bool bounded = !l.staged && c.epilogue && is_clamp(c.epilogue, &bounds);
  // The padding beside rows that are as wide as the image stays zero.
  zero(scratch, l.input_floats);
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    const int64_t n = task / (by_w * by_h) % c.batch, group = task / (by_w * by_h * c.batch);
    const int64_t rows = std::min(l.block.rows, c.h.out - row), columns = std::min(l.block.columns, w.out - column);
    Plane plane = l.plane;
    plane.rows = (rows - 1) * c.h.stride + c.h.span() + 1;
    pack_planes(plane, xs, c.h.in, w.in, c.input + n * xs.n + group * c.in_channels * xs.c, c.in_channels,
                row * c.h.stride + c.h.low, column * w.stride + w.low, scratch);
    float* output = c.output + n * ys.n + group * c.out_channels * ys.c + row * ys.h + column * ys.w;
    const int64_t y_pixel = l.staged ? l.stage_pixel : ys.w, y_row = l.staged ? l.stage_row : ys.h;
    const float* bias = c.bias ? c.bias + group * c.out_channels : nullptr;
    const Phase clip_w = clipped(w, column, columns);
    for (int64_t r = 0; r < rows; r++) {
      table.set(c, l, clipped(c.h, row + r, 1), clip_w);
      const int64_t run = table.a_channel > 0 ? run_of_channels(c, table.a_channel) : c.in_channels;
      const bool clamps = bounded && run >= c.in_channels;
      const float* x = scratch + r * c.h.stride * l.plane.row;
      float* y = (l.staged ? stage : output) + r * y_row;
      for (int64_t o = 0; o < c.out_channels; o += kStemVectors * kLanes) {
        const int64_t outputs = std::min<int64_t>(kStemVectors * kLanes, c.out_channels - o);
        const bool one = outputs <= kLanes;
        const int64_t pixels = stem_pixels(columns, stem_pixels_most(kLanes, one ? 1 : kStemVectors));
        const StemTile tile = one ? stem_tile_of<1>(pixels) : stem_tile_of<kStemVectors>(pixels);
        const float* weight = packed + group * l.weight_floats + o * taps;
        for (int64_t i = 0; i < c.in_channels; i += run) {
          const int64_t first = i * table.a_channel, last = std::min(c.in_channels, i + run) * table.a_channel;
          const StemEnds ends{i == 0 && bias ? bias + o : nullptr, i > 0, clamps ? &bounds : nullptr};
          for (int64_t p = 0; p < columns; p += pixels)
            tile(table.all + first, last - first, x + p, weight, y + p * y_pixel + o, y_pixel, columns - p, outputs, ends);
        }
      }
      if (!l.staged && !clamps) finish_runs(c, y, columns, y_pixel, c.out_channels);
    }
    if (!l.staged) continue;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t o = 0; o < c.out_channels; o += kLanes)
        split_pixels(output + r * ys.h + o * ys.c, ys.c, stage + r * y_row + o, y_pixel,
                     std::min<int64_t>(kLanes, c.out_channels - o), columns);
    finish_block(c, {n, group * c.out_channels, c.out_channels, row, rows, column, columns});
  }
}

}  // namespace groupwise::GW_TARGET
