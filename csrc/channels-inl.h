// Depthwise correlation with vectors along the channels: a block of 16 channels, one cache line a pixel, is copied
// zero-padded to scratch, as pixels a power of two apart in a channels-last tensor would share few sets of the L1 cache
// (measured at 128 channels: 50-64 % of peak in place, 74-88 % in scratch). Planar tensors are transposed on the way in
// and out, which pays where rows are short or strided.
#pragma once
#include "layout.h"
#include "pack-inl.h"
#include "simd.h"

namespace groupwise::GW_TARGET {

// Taps of kChannelBlock channels side by side: [tap][channel].
inline void pack_taps(const float* weight, int64_t channel, int64_t taps, int64_t channels, float* to) {
  for (int64_t t = 0; t < taps; t += kLanes)
    split_pixels(to + t * kChannelBlock, kChannelBlock, weight + t, channel, std::min<int64_t>(kLanes, taps - t),
                 channels);
}

// A kernel as a pixel tile walks it. Steps are in floats of scratch.
struct Walk {
  int64_t rows, columns, x_row, x_column, x_pixel;  // x_column: between taps; x_pixel: between outputs
  int64_t w_row, w_column;
};

// KW taps of a row, of every row, for PX outputs whose taps are as far apart as they are: each input serves KW of them.
template <int PX, int KW>
GW_INLINE void sum_taps(const Walk& k, const float* x, const float* w, Vec (&sum)[PX]) {
  for (int64_t kh = 0; kh < k.rows; kh++, x += k.x_row, w += k.w_row) {
    Vec factor[KW];
    unroll<KW>([&](auto t) GW_LAMBDA {
      factor[t] = load(w + t * k.w_column);
      pin(factor[t]);
    });
    unroll<PX + KW - 1>([&](auto i) GW_LAMBDA {
      Vec in = load(x + i * k.x_pixel);
      pin(in);
      unroll<KW>([&](auto t) GW_LAMBDA {
        if constexpr (i - t >= 0 && i - t < PX) sum[i - t] += in * factor[t];
      });
    });
  }
}

// PX outputs of one vector of channels; the first `stored` are kept.
template <int PX>
GW_NOINLINE void pixel_tile(const Walk& k, const float* x, const float* w, const Vec& bias, float* y, int64_t y_pixel,
                          int64_t stored, int64_t channels) {
  Vec sum[PX];
  unroll<PX>([&](auto p) GW_LAMBDA { sum[p] = bias; });
  if (k.x_pixel == k.x_column) {
    // 8 sums, 5 taps and an input are 14 registers.
    for (int64_t kw = 0; kw < k.columns;) {
      const int64_t left = k.columns - kw, parts = ceil_div(left, 5), take = ceil_div(left, parts);
      const float* at = x + kw * k.x_column;
      const float* taps = w + kw * k.w_column;
      switch (take) {
        case 5: sum_taps<PX, 5>(k, at, taps, sum); break;
        case 4: sum_taps<PX, 4>(k, at, taps, sum); break;
        case 3: sum_taps<PX, 3>(k, at, taps, sum); break;
        case 2: sum_taps<PX, 2>(k, at, taps, sum); break;
        default: sum_taps<PX, 1>(k, at, taps, sum);
      }
      kw += take;
    }
  } else {
    for (int64_t kh = 0; kh < k.rows; kh++) {
      for (int64_t kw = 0; kw < k.columns; kw++) {
        const float* at = x + kh * k.x_row + kw * k.x_column;
        Vec factor = load(w + kh * k.w_row + kw * k.w_column);
        pin(factor);
        unroll<PX>([&](auto p) GW_LAMBDA { add_product(sum[p], load(at + p * k.x_pixel), factor); });
      }
    }
  }
  unroll<PX>([&](auto p) GW_LAMBDA {
    if (p < stored) store_some(y + p * y_pixel, sum[p], channels);
  });
}

// The outputs start, start + apart, ... of one row.
inline void run_pixels(const Walk& k, const float* x, const float* w, const Vec& bias, float* y, int64_t y_pixel,
                       int64_t count, int64_t channels) {
  for (int64_t i = 0; i < count;) {
    const int64_t left = count - i;
    if (left > 4) {
      pixel_tile<8>(k, x + i * k.x_pixel, w, bias, y + i * y_pixel, y_pixel, left, channels), i += 8;
    } else {
      pixel_tile<4>(k, x + i * k.x_pixel, w, bias, y + i * y_pixel, y_pixel, left, channels), i += 4;
    }
  }
}

// Tasks [begin, end) of a depthwise correlation.
inline void correlate_channels(const Correlation& c, const ChannelsLayout& l, int64_t begin, int64_t end, float* scratch) {
  const int64_t by_w = ceil_div(c.w.front().out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const int64_t by_c = ceil_div(c.groups, kChannelBlock);
  const int64_t taps = l.kernel_h * l.kernel_w;
  float* weights = scratch + l.input_floats;
  float* stage = weights + l.weight_floats;
  int64_t out_w = 0;
  for (const Sweep& w : c.w) out_w += w.out;
  int64_t packed = -1;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    const int64_t channel = task / (by_w * by_h) % by_c * kChannelBlock, n = task / (by_w * by_h * by_c);
    const int64_t channels = std::min<int64_t>(kChannelBlock, c.groups - channel);
    const int64_t rows = std::min(l.block.rows, c.h.out - row);
    if (packed != channel)
      pack_taps(c.weight + channel * c.weight_strides.group, c.weight_strides.group, taps, channels, weights);
    packed = channel;
    pack_pixels(l.input, c.input_strides, c.h.in, c.w.front().in,
                c.input + n * c.input_strides.n + channel * c.input_strides.c, channels,
                row * c.h.stride + c.h.low, column * c.w.front().stride + l.low_w, scratch);
    const int64_t step = c.w.front().step;
    float* output = c.output + n * c.output_strides.n + channel * c.output_strides.c +
                    (c.h.first + row * c.h.step) * c.output_strides.h + column * step * c.output_strides.w;
    const int64_t y_row = l.staged ? l.output.columns * kChannelBlock : c.h.step * c.output_strides.h;
    const int64_t pixel = l.staged ? kChannelBlock : c.output_strides.w;
    for (const Sweep& w : c.w) {
      const int64_t columns = std::min(l.block.columns, w.out - column);
      if (columns <= 0) continue;
      // Outputs a tap apart share inputs; a dilation makes as many turns of them.
      const int64_t apart = w.stride == 1 ? w.spacing : 1;
      const Walk k{c.h.taps, w.taps, c.h.spacing * l.input.columns * kChannelBlock, w.spacing * kChannelBlock,
                   apart * w.stride * kChannelBlock, c.h.index_step * l.kernel_w * kChannelBlock,
                   w.index_step * kChannelBlock};
      const int64_t y_pixel = step * pixel;
      for (int64_t v = 0; v < channels; v += kLanes) {
        const int64_t lanes = std::min<int64_t>(kLanes, channels - v);
        const Vec bias = c.bias ? load_some(c.bias + channel + v, lanes) : Vec{};
        const float* first_tap = weights + (c.h.index * l.kernel_w + w.index) * kChannelBlock + v;
        for (int64_t r = 0; r < rows; r++) {
          const float* x = scratch + (r * c.h.stride * l.input.columns + w.low - l.low_w) * kChannelBlock + v;
          float* y = (l.staged ? stage : output) + v + r * y_row + w.first * pixel;
          for (int64_t start = 0; start < std::min(apart, columns); start++)
            run_pixels(k, x + start * kChannelBlock, first_tap, bias, y + start * y_pixel, apart * y_pixel,
                       (columns - start - 1) / apart + 1, lanes);
        }
      }
    }
    if (!l.staged) continue;
    const int64_t columns = std::min(l.block.columns * step, out_w - column * step);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t v = 0; v < channels; v += kLanes)
        split_pixels(output + v * c.output_strides.c + r * c.h.step * c.output_strides.h, c.output_strides.c,
                     stage + r * y_row + v, kChannelBlock, std::min<int64_t>(kLanes, channels - v), columns);
  }
}

}  // namespace groupwise::GW_TARGET
