// Correlation of kernels as large as the image, whose rows follow each other in memory. Vectors run along the taps and read in
// place: an output of a forward is a dot product, and the gradient of an image is a sum of kernels.
#pragma once
#include "kernels/finish.h"
#include "kernels/planar/layout.h"
#include "kernels/typed.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Where the floats of four dot products begin. Each product needs two loads, which leave time for one sum of each.
struct Dots {
  const Real* x[4];
  const Real* w[4];
};

// Adds the products of n floats; `rest` takes those that fill no vector, where loads have no masks.
GW_INLINE void add_dots(const Dots& d, int64_t at, int64_t w_at, int64_t n, Vec (&sum)[4], Four* rest) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    unroll<4>([&](auto j) GW_LAMBDA { add_product(sum[j], load(d.x[j] + at + i), load(d.w[j] + w_at + i)); });
  if constexpr (kMasks) {
    if (i == n) return;
    unroll<4>([&](auto j)
                  GW_LAMBDA { add_product(sum[j], load_some(d.x[j] + at + i, n - i), load_some(d.w[j] + w_at + i, n - i)); });
  } else {
    for (; i < n; i++)
      for (int j = 0; j < 4; j++) (*rest)[j] += d.x[j][at + i] * d.w[j][w_at + i];
  }
}

// Returns the dot products of n floats of each channel.
GW_NOINLINE Four dots_of(const Dots& d, int64_t channels, int64_t x_channel, int64_t w_channel, int64_t n) {
  // A longer sum in one lane would round too much.
  const int64_t run = std::max<int64_t>(1, kRun * kLanes / std::max<int64_t>(1, n));
  Four total{};
  for (int64_t c = 0; c < channels;) {
    Vec sum[4] = {};
    Four rest{};
    for (const int64_t end = std::min(c + run, channels); c < end; c++)
      add_dots(d, c * x_channel, c * w_channel, n, sum, &rest);
    total += sum_lanes(sum) + rest;
  }
  return total;
}

// Computes a row of outputs of `groups` groups, four output channels at a time, of which the last repeat.
inline void sum_rows(const Correlation& c, const Phase& h, int64_t groups, const Real* x, const Real* w, const Real* bias,
                     Real* y) {
  const int64_t channels = groups * c.out_channels, n = h.taps * c.w.front().taps;
  for (int64_t first = 0; first < channels; first += 4) {
    Dots d;
    unroll<4>([&](auto j) GW_LAMBDA {
      const int64_t channel = std::min(first + j, channels - 1), g = channel / c.out_channels;
      d.x[j] = x + g * c.in_channels * c.input_strides.c;
      d.w[j] = w + begin_of(c.weight_strides, c.out_channels, channel);
    });
    const Four sums = dots_of(d, c.in_channels, c.input_strides.c, c.weight_strides.c, n);
    for (int64_t j = 0; j < std::min<int64_t>(4, channels - first); j++)
      y[(first + j) * c.output_strides.c] = sums[j] + (bias ? bias[first + j] : Real{});
  }
}

// Computes n outputs of one channel: the sum of one kernel of each input channel, times its input.
inline void spread_kernels(const Correlation& c, int64_t n, const Real* x, const Real* w, Real start, Real* y) {
  const auto sum_of = [&](auto zeros, auto&& at) GW_LAMBDA {
    auto total = start - zeros;
    for (int64_t i = 0; i < c.in_channels;) {
      auto sum = zeros;
      for (const int64_t end = std::min(i + c.longest_run, c.in_channels); i < end; i++)
        sum += x[i * c.input_strides.c] * at(w + i * c.weight_strides.c);
      total += sum;
    }
    return total;
  };
  in_vectors(
      n, [&](int64_t i) GW_LAMBDA { store(y + i, sum_of(Vec{}, [&](const Real* p) GW_LAMBDA { return load(p + i); })); },
      [&](int64_t i)
          GW_LAMBDA { store_four(y + i, sum_of(Four{}, [&](const Real* p) GW_LAMBDA { return load_four(p + i); })); },
      [&](int64_t i) GW_LAMBDA { y[i] = sum_of(Real{}, [&](const Real* p) GW_LAMBDA { return p[i]; }); });
}

// Runs tasks [begin, end), each of which computes some groups of one sample.
inline void run_whole(const Correlation& c, const CorrelationLayout& l, int64_t begin, int64_t end) {
  const Strides &xs = c.input_strides, &ys = c.output_strides;
  const int64_t by_g = ceil_div(c.groups, l.block.groups), row = c.w.front().taps;
  for (int64_t task = begin; task < end; task++) {
    const int64_t first = task % by_g * l.block.groups, n = task / by_g, groups = std::min(l.block.groups, c.groups - first);
    const Real* x = c.input + n * xs.n + first * c.in_channels * xs.c;
    const Real* w = c.weight + first * c.weight_strides.group;
    const Real* bias = c.bias ? c.bias + first * c.out_channels : nullptr;
    Real* y = c.output + n * ys.n + first * c.out_channels * ys.c;
    if (l.whole == Whole::sum) {
      for (int64_t r = 0; r < c.h.out; r++) {
        const Phase h = clipped(c.h, r, 1);
        const int64_t at = h.taps > 0 ? (r * h.stride + h.low) * row : 0;
        sum_rows(c, h, groups, x + at, w + h.index * row, bias, y + r * ys.h);
      }
    }
    for (int64_t channel = 0; l.whole == Whole::spread && channel < groups * c.out_channels; channel++)
      spread_kernels(c, c.h.out * row, x + channel / c.out_channels * c.in_channels * xs.c,
                     w + begin_of(c.weight_strides, c.out_channels, channel), bias ? bias[channel] : Real{},
                     y + channel * ys.c);
    finish_block(c, {n, first * c.out_channels, groups * c.out_channels, 0, c.h.out, 0, c.w.front().out});
  }
}

}  // namespace groupwise::GW_TARGET
