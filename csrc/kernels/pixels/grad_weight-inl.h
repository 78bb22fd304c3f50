// The gradient of a weight, with lanes along the input channels. No lanes are left to sum at the end of a block, and a narrow
// image leaves no lane idle. grad_output is broadcast (groups) or a vector (depthwise).
#pragma once
#include "kernels/pixels/layout.h"
#include "kernels/block_sum-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/tiles.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// The positions that a tile goes through: `pixels` outputs in each of `rows` rows. Steps are in floats.
struct PixelPositions {
  const Real* x;
  const Real* go;
  int64_t rows, pixels;
  int64_t x_row, x_pixel, go_row, go_pixel, go_channel;
  int64_t row, column;  // where the first tap of the first output reads the image
};

// Leaves only the positions that some of rows x columns taps from (kh, kw) on reads inside the image.
GW_INLINE PixelPositions within(const Problem& p, const PixelPositions& all, int64_t kh, int64_t rows, int64_t kw,
                                int64_t columns) {
  const Range h = outputs_inside(all.row + kh * p.h.dilation, (rows - 1) * p.h.dilation, p.h.stride, all.rows, p.h.in);
  const Range w = outputs_inside(all.column + kw * p.w.dilation, (columns - 1) * p.w.dilation, p.w.stride, all.pixels, p.w.in);
  PixelPositions s = all;
  s.x += h.first * s.x_row + w.first * s.x_pixel;
  s.go += h.first * s.go_row + w.first * s.go_pixel;
  s.rows = h.last - h.first;
  s.pixels = w.last - w.first;
  return s;
}

// Calls f(positions) for runs of positions, of at most `most`.
template <class F>
GW_INLINE void each_run(const Problem& p, const PixelPositions& all, int64_t most, F&& f) {
  const int64_t rows = std::max<int64_t>(1, most / all.pixels), pixels = even_run(all.pixels, most);
  for (int64_t r = 0; r < all.rows; r += rows)
    for (int64_t x = 0; x < all.pixels; x += pixels) {
      PixelPositions s = all;
      s.x += r * s.x_row + x * s.x_pixel;
      s.go += r * s.go_row + x * s.go_pixel;
      s.row += r * p.h.stride;
      s.column += x * p.w.stride;
      s.rows = std::min(rows, all.rows - r);
      s.pixels = std::min(pixels, all.pixels - x);
      f(s);
    }
}

// Sums KH x KW taps of one vector of channels of a depthwise convolution, of which `lanes` exist.
template <int KH, int KW>
GW_INLINE void depthwise_tile(const PixelPositions& s, int64_t tap_row, int64_t tap_column, int64_t lanes, Real* sums,
                              int64_t w_row) {
  Vec sum[KH][KW];
  unroll<KH>([&](auto i) GW_LAMBDA { unroll<KW>([&](auto j) GW_LAMBDA { sum[i][j] = Vec{}; }); });
  for (int64_t r = 0; r < s.rows; r++) {
    const Real* x = s.x + r * s.x_row;
    const Real* go = s.go + r * s.go_row;
    for (int64_t p = 0; p < s.pixels; p++, x += s.x_pixel, go += s.go_pixel) {
      Vec out = lanes == kLanes ? load(go) : load_some(go, lanes);
      pin(out);
      unroll<KH>([&](auto i) GW_LAMBDA {
        unroll<KW>([&](auto j) GW_LAMBDA { add_product(sum[i][j], load(x + i * tap_row + j * tap_column), out); });
      });
    }
  }
  unroll<KH>([&](auto i) GW_LAMBDA {
    unroll<KW>([&](auto j) GW_LAMBDA {
      Real* to = sums + i * w_row + j * kChannelBlock;
      store(to, load(to) + sum[i][j]);
    });
  });
}

template <int KH>
GW_INLINE void depthwise_columns(const Problem& p, bool clip, const PixelPositions& s, int64_t kh, int64_t tap_row,
                                 int64_t tap_column, int64_t lanes, Real* sums) {
  const int64_t taps = p.w.kernel, w_row = taps * kChannelBlock;
  for (int64_t kw = 0, take; kw < taps; kw += take) {
    take = ceil_div(taps - kw, ceil_div(taps - kw, 4));
    PixelPositions at = clip ? within(p, s, kh, KH, kw, take) : s;
    if (at.rows * at.pixels == 0) continue;
    at.x += kh * tap_row + kw * tap_column;
    Real* to = sums + kw * kChannelBlock;
    switch (take) {
      case 4: depthwise_tile<KH, 4>(at, tap_row, tap_column, lanes, to, w_row); break;
      case 3: depthwise_tile<KH, 3>(at, tap_row, tap_column, lanes, to, w_row); break;
      case 2: depthwise_tile<KH, 2>(at, tap_row, tap_column, lanes, to, w_row); break;
      default: depthwise_tile<KH, 1>(at, tap_row, tap_column, lanes, to, w_row);
    }
  }
}

inline void depthwise_taps(const Problem& p, bool clip, const PixelPositions& s, int64_t tap_row, int64_t tap_column,
                           int64_t lanes, Real* sums) {
  const int64_t rows = p.h.kernel;
  for (int64_t kh = 0, take; kh < rows; kh += take) {
    take = ceil_div(rows - kh, ceil_div(rows - kh, 3));
    Real* to = sums + kh * p.w.kernel * kChannelBlock;
    switch (take) {
      case 3: depthwise_columns<3>(p, clip, s, kh, tap_row, tap_column, lanes, to); break;
      case 2: depthwise_columns<2>(p, clip, s, kh, tap_row, tap_column, lanes, to); break;
      default: depthwise_columns<1>(p, clip, s, kh, tap_row, tap_column, lanes, to);
    }
  }
}

// Sums OC output channels by N slots; a slot is one tap of one vector of input channels.
template <int OC, int N>
GW_NOINLINE void outer_tile(const PixelPositions& s, const int32_t* slot, Real* sums, int64_t per_output) {
  Vec sum[OC][N];
  unroll<OC>([&](auto o) GW_LAMBDA { unroll<N>([&](auto n) GW_LAMBDA { sum[o][n] = Vec{}; }); });
  for (int64_t r = 0; r < s.rows; r++) {
    const Real* x = s.x + r * s.x_row;
    const Real* go = s.go + r * s.go_row;
    for (int64_t p = 0; p < s.pixels; p++, x += s.x_pixel, go += s.go_pixel) {
      Vec in[N];
      unroll<N>([&](auto n) GW_LAMBDA {
        in[n] = load(x + slot[n]);
        pin(in[n]);
      });
      unroll<OC>([&](auto o) GW_LAMBDA {
        const Vec out = broadcast(go[o * s.go_channel]);
        unroll<N>([&](auto n) GW_LAMBDA { add_product(sum[o][n], in[n], out); });
      });
    }
  }
  unroll<OC>([&](auto o) GW_LAMBDA {
    unroll<N>([&](auto n) GW_LAMBDA {
      Real* to = sums + o * per_output + n * kLanes;
      store(to, load(to) + sum[o][n]);
    });
  });
}

template <int OC>
GW_INLINE void outer_slots(const Problem& p, const GradWeightChannelsLayout& l, const PixelPositions& all, Real* sums,
                           int64_t per_output) {
  const int64_t slots = static_cast<int64_t>(l.slots.size()), vectors = l.input.width / kLanes;
  for (int64_t n = 0, count; n < slots; n += count) {
    count = std::min<int64_t>(3, slots - n);
    PixelPositions s = all;
    if (l.clip) {
      const int64_t first = n / vectors, last = (n + count - 1) / vectors, kh = first / p.w.kernel, kw = first % p.w.kernel;
      const bool one_row = last / p.w.kernel == kh;
      s = within(p, all, kh, last / p.w.kernel - kh + 1, one_row ? kw : 0, one_row ? last - first + 1 : p.w.kernel);
      if (s.rows * s.pixels == 0) continue;
    }
    const int32_t* slot = l.slots.data() + n;
    switch (count) {
      case 3: outer_tile<OC, 3>(s, slot, sums + n * kLanes, per_output); break;
      case 2: outer_tile<OC, 2>(s, slot, sums + n * kLanes, per_output); break;
      default: outer_tile<OC, 1>(s, slot, sums + n * kLanes, per_output);
    }
  }
}

// Runs tasks [begin, end), each of which sums 16 channels of a depthwise convolution, or a block of output channels of one
// group, over one part of the samples and positions.
void grad_weight_channels(const GradWeight& work, const GradWeightChannelsLayout& l, int64_t begin, int64_t end, Real* scratch,
                          Real* parts) {
  const Problem& p = work.problem;
  const Strides& gs = work.grad_output_strides;
  const WeightStrides& ws = work.weight_strides;
  const int64_t taps = p.h.kernel * p.w.kernel, per_output = taps * l.input.width;
  const int64_t by_o = l.depthwise ? 1 : ceil_div(p.out_channels, l.outputs);
  const int64_t by_g = l.depthwise ? ceil_div(p.groups, kChannelBlock) : p.groups;
  const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
  const int64_t image_blocks = p.batch * by_h * by_w;
  Real* stage = scratch + l.input_floats;
  Real* sums = stage + l.output_floats;
  for (int64_t task = begin; task < end; task++) {
    const int64_t part = task % l.parts, o = task / l.parts % by_o * l.outputs;
    const int64_t group = task / (l.parts * by_o) % by_g * (l.depthwise ? kChannelBlock : 1);
    const int64_t outputs = l.depthwise ? 1 : std::min(l.outputs, p.out_channels - o);
    const int64_t channels = l.depthwise ? std::min<int64_t>(kChannelBlock, p.groups - group) : p.in_channels;
    zero(sums, outputs * per_output);
    for (int64_t image_block = part * image_blocks / l.parts; image_block < (part + 1) * image_blocks / l.parts;
         image_block++) {
      const int64_t column = image_block % by_w * l.block.columns, row = image_block / by_w % by_h * l.block.rows;
      const int64_t n = image_block / (by_w * by_h);
      const Strides& xs = work.input_strides;
      const Real* input = work.input + n * xs.n + group * p.in_channels * xs.c;
      if (!l.in_place)
        pack_pixels(l.input, xs, p.h.in, p.w.in, input, channels, row * p.h.stride - p.h.pad, column * p.w.stride - p.w.pad,
                    scratch);
      const int64_t rows = std::min(l.block.rows, p.h.out - row), columns = std::min(l.block.columns, p.w.out - column);
      PixelPositions s{l.in_place ? input + row * p.h.stride * xs.h + column * p.w.stride * xs.w : scratch,
                       work.grad_output + n * gs.n + (group * p.out_channels + o) * gs.c + row * gs.h + column * gs.w,
                       rows,
                       columns,
                       p.h.stride * (l.in_place ? xs.h : l.input.columns * l.input.width),
                       p.w.stride * (l.in_place ? xs.w : l.input.width),
                       gs.h,
                       gs.w,
                       gs.c,
                       row * p.h.stride - p.h.pad,
                       column * p.w.stride - p.w.pad};
      if (work.sums)
        add_block(s.go, gs, rows, columns, l.depthwise ? channels : outputs,
                  work.sums + (part * p.groups + group) * p.out_channels + o);
      if (l.staged) {
        pack_pixels({rows, columns, kChannelBlock}, gs, rows, columns, s.go, channels, 0, 0, stage);
        s.go = stage;
        s.go_row = columns * kChannelBlock;
        s.go_pixel = kChannelBlock;
      }
      // After kGradWeightRun products an accumulator is added to the block's sums and starts again.
      each_run(p, s, kGradWeightRun, [&](PixelPositions at) GW_LAMBDA {
        if (l.depthwise) {
          for (int64_t v = 0; v < channels; v += kLanes, at.x += kLanes, at.go += kLanes)
            depthwise_taps(p, l.clip, at, p.h.dilation * l.input.columns * l.input.width, p.w.dilation * l.input.width,
                           l.staged ? kLanes : std::min<int64_t>(kLanes, channels - v), sums + v);
          return;
        }
        int64_t i = 0;
        if constexpr (kOuterOutputs > 4)
          for (; i + kOuterOutputs <= outputs; i += kOuterOutputs, at.go += kOuterOutputs * gs.c)
            outer_slots<kOuterOutputs>(p, l, at, sums + i * per_output, per_output);
        for (; i + 4 <= outputs; i += 4, at.go += 4 * gs.c) outer_slots<4>(p, l, at, sums + i * per_output, per_output);
        for (; i + 2 <= outputs; i += 2, at.go += 2 * gs.c) outer_slots<2>(p, l, at, sums + i * per_output, per_output);
        for (; i < outputs; i++, at.go += gs.c) outer_slots<1>(p, l, at, sums + i * per_output, per_output);
      });
    }
    for (int64_t i = 0; i < outputs; i++) {
      const int64_t at = group * p.out_channels + o + i;
      const bool last = l.parts == 1;
      Real* to = last ? work.grad_weight + group * ws.group + (o + i) * ws.o
                      : parts + (part * p.groups * p.out_channels + at) * p.in_channels * taps;
      // Sums are [tap][channel] and become [channel][tap]. The channels of a depthwise weight are its groups.
      const int64_t channel = !last ? taps : l.depthwise ? ws.group : ws.c;
      const Real* from = sums + i * per_output;
      // Returns the channel of the first lane of vector v.
      const auto first = [&](int64_t v) { return l.in_place ? std::min(v * kLanes, channels - kLanes) : v * kLanes; };
      if (!last || (ws.w == 1 && ws.h == p.w.kernel)) {
        for (int64_t v = 0; v * kLanes < channels; v++)
          split_pixels(to + first(v) * channel, channel, from + v * kLanes, l.input.width,
                       std::min<int64_t>(kLanes, channels - first(v)), taps);
        continue;
      }
      for (int64_t t = 0; t < taps; t++)
        for (int64_t c = 0; c < channels; c++)
          to[c * channel + t / p.w.kernel * ws.h + t % p.w.kernel * ws.w] =
              from[t * l.input.width + c + c / kLanes * kLanes - first(c / kLanes)];
    }
  }
}

}  // namespace groupwise::GW_TARGET
