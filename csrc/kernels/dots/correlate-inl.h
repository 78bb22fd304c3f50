// Correlation of groups by dot products, with vectors along the input channels. These are neighbours in memory in channels-last
// tensors and weights, so the weights are read in place. With 16 registers 4 output channels by 3 pixels are 12 sums, fed by 4
// vectors of weights and 3 of inputs: 7 loads for 12 FMAs. With 32 registers they are 4 by 4. Their lanes are added at the end.
#pragma once
#include "kernels/channels_layout.h"
#include "kernels/pack-inl.h"
#include "kernels/pixels-inl.h"
#include "kernels/tiles.h"

namespace groupwise::GW_TARGET {

// The taps that a tile sums, each of `floats` neighbouring inputs and weights. Steps are in floats.
struct DotWalk {
  int64_t rows, columns, floats;
  int64_t x_row, x_column, w_row, w_column, w_output;
};

// Computes four output channels of a block.
template <int PX>
GW_NOINLINE void run_dots(const DotWalk& k, const PixelBlock& block, const float* w, const float* bias) {
  Four start{};
  if (bias) std::memcpy(&start, bias, sizeof start);
  each_tile<PX>(block, [&](const float* const(&in)[PX], float* const(&out)[PX], int64_t left) GW_LAMBDA {
    Four total[PX];
    unroll<PX>([&](auto p) GW_LAMBDA { total[p] = start; });
    Vec sum[PX][4] = {};
    int64_t summed = 0;
    for (int64_t kh = 0; kh < k.rows; kh++) {
      for (int64_t kw = 0; kw < k.columns; kw++) {
        const int64_t from = kh * k.x_row + kw * k.x_column;
        const float* weight[4];
        unroll<4>([&](auto o) GW_LAMBDA { weight[o] = w + kh * k.w_row + kw * k.w_column + o * k.w_output - from; });
        for (int64_t at = from; at < from + k.floats;) {
          const int64_t end = std::min(from + k.floats, at + kRun * kLanes - summed);
          summed += end - at;
          for (; at < end; at += kLanes) {
            Vec v[PX];
            unroll<PX>([&](auto p) GW_LAMBDA {
              v[p] = load(in[p] + at);
              pin(v[p]);
            });
            unroll<4>([&](auto o) GW_LAMBDA {
              Vec factor = load(weight[o] + at);
              pin(factor);
              unroll<PX>([&](auto p) GW_LAMBDA { add_product(sum[p][o], v[p], factor); });
            });
          }
          // A longer sum in one lane would round too much.
          if (summed < kRun * kLanes) continue;
          summed = 0;
          unroll<PX>([&](auto p) GW_LAMBDA {
            total[p] += sum_lanes(sum[p]);
            unroll<4>([&](auto o) GW_LAMBDA { sum[p][o] = Vec{}; });
          });
        }
      }
    }
    unroll<PX>([&](auto p) GW_LAMBDA {
      total[p] += sum_lanes(sum[p]);
      if (p < left) std::memcpy(out[p], &total[p], sizeof total[p]);
    });
  });
}

// Runs tasks [begin, end) of a correlation.
void correlate_dots(const Correlation& c, const ChannelsLayout& l, int64_t begin, int64_t end, float* scratch) {
  const Phase& s = c.w.front();
  const WeightStrides& ws = c.weight_strides;
  const int64_t by_w = ceil_div(s.out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const Strides& xs = c.input_strides;
  const int64_t line = l.in_place ? xs.h : l.input.columns * l.input.width, x_pixel = l.in_place ? xs.w : l.input.width;
  const int64_t y_row = c.h.step * c.output_strides.h;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    // The samples of a group follow each other, so that its weights stay in the cache.
    const int64_t n = task / (by_w * by_h) % c.batch, group = task / (by_w * by_h * c.batch);
    const int64_t first = group * c.out_channels;
    const int64_t low_h = std::max(row * c.h.stride + c.h.low, -(std::min(l.strip.rows, l.block.rows) - 1) * c.h.stride);
    const int64_t low_w = std::max(column * s.stride + s.low, -(std::min(l.strip.columns, l.block.columns) - 1) * s.stride);
    const float* input = c.input + n * xs.n + group * c.in_channels;
    if (!l.in_place) pack_pixels(l.input, xs, c.h.in, s.in, input, c.in_channels, low_h, low_w, scratch);
    float* output =
        c.output + n * c.output_strides.n + first + c.h.first * c.output_strides.h + row * y_row + column * c.output_strides.w;
    for (int64_t o = 0; o < c.out_channels; o += 4) {
      // The last four start early rather than end late.
      const int64_t from = std::min(o, c.out_channels - 4);
      const auto run_strip = [&](const Phase& h, const Phase& w, int64_t r, int64_t rows, int64_t x, int64_t columns) {
        DotWalk k{
            h.taps, w.taps, c.in_channels, h.spacing * line, w.spacing * x_pixel, h.index_step * ws.h, w.index_step * ws.w,
            ws.o};
        // The taps of a row are one dot product if they are neighbours too.
        if (k.x_column == k.floats && k.w_column == k.floats) k.floats *= k.columns, k.columns = 1;
        const float* at = l.in_place ? input + low_h * line + low_w * x_pixel : scratch;
        if (h.taps * w.taps > 0)
          at += ((row + r) * h.stride + h.low - low_h) * line + ((column + x) * w.stride + w.low - low_w) * x_pixel;
        const PixelBlock block{at,
                               h.stride * line,
                               w.stride * x_pixel,
                               output + from + r * y_row + x * c.output_strides.w,
                               y_row,
                               c.output_strides.w,
                               rows,
                               columns};
        const float* weight = c.weight + group * ws.group + from * ws.o + h.index * ws.h + w.index * ws.w;
        run_dots<kDotPixels>(k, block, weight, c.bias ? c.bias + first + from : nullptr);
      };
      each_strip(c, l.block, l.strip, row, column, run_strip);
    }
    finish_block(c, {n, first, c.out_channels, row, std::min(l.block.rows, c.h.out - row), column,
                     std::min(l.block.columns, s.out - column)});
  }
}

}  // namespace groupwise::GW_TARGET
