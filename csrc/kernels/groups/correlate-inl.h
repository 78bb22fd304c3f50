// Correlation of groups with vectors along the output channels. 2 vectors by 6 pixels are 12 sums, fed by 2 vectors of packed
// weights and 6 broadcast inputs: 8 loads for 12 FMAs. Where a vector holds the 16 channels of a block it is 1 by 12.
#pragma once
#include "kernels/groups/rows-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/pixels-inl.h"
#include "kernels/tiles.h"
#include "kernels/turn-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// The `rows` x `columns` taps of `channels` channels that a tile sums. Steps are in floats.
struct GroupWalk {
  int64_t rows, columns, channels;
  int64_t x_row, x_column;
  int64_t w_row, w_column;
};

template <int OV, int PX>
GW_INLINE void group_tile(const GroupWalk& k, const Real* const (&x)[PX], const Real* w, const Vec* bias, Vec (&sum)[PX][OV]) {
  unroll<PX>([&](auto p) GW_LAMBDA { unroll<OV>([&](auto v) GW_LAMBDA { sum[p][v] = bias[v]; }); });
  for (int64_t kh = 0; kh < k.rows; kh++) {
    for (int64_t kw = 0; kw < k.columns; kw++) {
      const int64_t from = kh * k.x_row + kw * k.x_column;
      const Real* weight = w + kh * k.w_row + kw * k.w_column;
      for (int64_t c = from; c < from + k.channels; c++, weight += kGroupBlock) {
        Vec factor[OV];
        unroll<OV>([&](auto v) GW_LAMBDA {
          factor[v] = load(weight + v * kLanes);
          pin(factor[v]);
        });
        unroll<PX>([&](auto p) GW_LAMBDA {
          const Vec in = broadcast(x[p][c]);
          unroll<OV>([&](auto v) GW_LAMBDA { add_product(sum[p][v], factor[v], in); });
        });
      }
    }
  }
}

// Computes OV vectors of output channels of a block, of which `outputs` channels exist.
template <int OV, int PX>
GW_NOINLINE void run_group(const GroupWalk& k, const PixelBlock& block, const Real* w, const Vec* bias, int64_t outputs,
                           bool add) {
  each_tile<PX>(block, [&](const Real* const(&in)[PX], Real* const(&out)[PX], int64_t left) GW_LAMBDA {
    Vec sum[PX][OV];
    group_tile<OV, PX>(k, in, w, bias, sum);
    unroll<PX>([&](auto p) GW_LAMBDA {
      unroll<OV>([&](auto v) GW_LAMBDA {
        if (outputs > v * kLanes && p < left) put(out[p] + v * kLanes, sum[p][v], outputs - v * kLanes, add);
      });
    });
  });
}

// Packs the weights of `outputs` output channels as [tap][input channel][kGroupBlock]; lanes beyond them hold anything. It
// reads along whatever is contiguous in the weight: output channels, input channels (of a channels-last weight, or a 1x1 one),
// or the taps of a channel.
inline void pack_weights(const Correlation& c, const ChannelsLayout& l, const Real* from, int64_t outputs, Real* to) {
  const WeightStrides& s = c.weight_strides;
  const int64_t taps = l.kernel_h * l.kernel_w, tap = c.in_channels * kGroupBlock;
  if (s.o != 1 && s.c != 1 && s.w == 1 && s.h == l.kernel_w && taps >= kLeastTurned) {
    for (int64_t i = 0; i < c.in_channels; i++)
      for (int64_t o = 0; o < outputs; o += kLanes)
        turn_rows(to + i * kGroupBlock + o, tap, std::min<int64_t>(kLanes, outputs - o), taps,
                  [&](int64_t j) GW_LAMBDA { return from + i * s.c + (o + j) * s.o; });
    return;
  }
  for (int64_t t = 0; t < taps; t++, to += tap) {
    const Real* at = from + t / l.kernel_w * s.h + t % l.kernel_w * s.w;
    pack_tap(to, kGroupBlock, at, s, c.in_channels, outputs);
  }
}

// Runs tasks [begin, end) of a correlation.
void correlate_groups(const Correlation& c, const ChannelsLayout& l, int64_t begin, int64_t end, Real* scratch) {
  constexpr int kVectors = kGroupBlock / kLanes;
  const int64_t by_w = ceil_div(c.w.front().out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const int64_t step = c.w.front().step;
  const WeightStrides& ws = c.weight_strides;
  Real* weights = scratch + l.input_floats;
  Real* stage = weights + l.weight_floats;
  const int64_t block_floats = group_block_floats(c, l.kernel_h, l.kernel_w);
  const bool once = l.weight_floats >= block_floats * ceil_div(c.out_channels, kGroupBlock);
  int64_t out_w = 0, packed_group = -1;
  for (const Phase& w : c.w) out_w += w.out;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    const int64_t n = task / (by_w * by_h) % c.batch, group = task / (by_w * by_h * c.batch);
    const int64_t rows = std::min(l.block.rows, c.h.out - row);
    const int64_t stride = c.w.front().stride;
    const int64_t low_h = std::max(row * c.h.stride + c.h.low, -(std::min(l.strip.rows, l.block.rows) - 1) * c.h.stride);
    const int64_t low_w = std::max(column * stride + l.low_w, -(std::min(l.strip.columns, l.block.columns) - 1) * stride);
    const Strides& xs = c.input_strides;
    const Real* input = c.input + n * xs.n + group * c.in_channels * xs.c;
    if (!l.in_place) pack_pixels(l.input, xs, c.h.in, c.w.front().in, input, c.in_channels, low_h, low_w, scratch);
    const int64_t x_row = l.in_place ? xs.h : l.input.columns * l.input.width, x_pixel = l.in_place ? xs.w : l.input.width;
    Real* output = c.output + n * c.output_strides.n + group * c.out_channels * c.output_strides.c +
                   (c.h.first + row * c.h.step) * c.output_strides.h + column * step * c.output_strides.w;
    const int64_t y_row = l.staged ? l.output.columns * l.output.width : c.h.step * c.output_strides.h;
    const int64_t pixel = l.staged ? l.output.width : c.output_strides.w;
    const auto pack_block = [&](int64_t o, Real* packed) {
      if (packed_group != group || !once)
        pack_weights(c, l, c.weight + group * ws.group + o * ws.o, std::min<int64_t>(kGroupBlock, c.out_channels - o), packed);
    };
    int64_t together = kGroupBlock;
    for (int64_t o = 0; o < c.out_channels; o += together) {
      // Tiles of rows take two blocks of output channels where there are two.
      together = l.by_rows && c.out_channels - o > kGroupBlock ? 2 * kGroupBlock : kGroupBlock;
      const int64_t outputs = std::min<int64_t>(together, c.out_channels - o);
      Real* packed = weights + (once ? o / kGroupBlock * block_floats : 0);
      for (int64_t i = 0; i < outputs; i += kGroupBlock) pack_block(o + i, packed + i / kGroupBlock * block_floats);
      Vec bias[2 * kVectors];
      unroll<2 * kVectors>([&](auto v) GW_LAMBDA {
        const int64_t lanes = std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes);
        bias[v] = c.bias ? load_some(c.bias + group * c.out_channels + o + v * kLanes, lanes) : Vec{};
      });
      // Computes a strip of `height` rows from r on, and of `columns` columns of a phase from x on.
      const auto run_strip = [&](const Phase& h, const Phase& w, int64_t r, int64_t height, int64_t x, int64_t columns) {
        const int64_t taps = h.taps * w.taps, run = run_of_channels(c, taps);
        const Real* first = packed + (h.index * l.kernel_w + w.index) * c.in_channels * kGroupBlock;
        const Real* from = l.in_place ? input + low_h * x_row + low_w * x_pixel : scratch;
        if (taps > 0)
          from += ((row + r) * h.stride + h.low - low_h) * x_row + ((column + x) * stride + w.low - low_w) * x_pixel;
        Real* y = (l.staged ? stage : output) + o + w.first * pixel + r * y_row + x * step * pixel;
        for (int64_t i = 0; i < c.in_channels; i += run) {
          const GroupWalk k{h.taps,
                            w.taps,
                            std::min(run, c.in_channels - i),
                            h.spacing * x_row,
                            w.spacing * x_pixel,
                            h.index_step * l.kernel_w * c.in_channels * kGroupBlock,
                            w.index_step * c.in_channels * kGroupBlock};
          const PixelBlock block{from + i, h.stride * x_row, stride * x_pixel, y, y_row, step * pixel, height, columns};
          const Real* weight = first + i * kGroupBlock;
          Vec start[2 * kVectors];
          unroll<2 * kVectors>([&](auto v) GW_LAMBDA { start[v] = i == 0 ? bias[v] : Vec{}; });
          if (kManyRegisters && l.by_rows && (w.taps > 1 || (w.taps > 0 && outputs > kLanes))) {
            const RowWalk walk{h.taps, w.taps, k.channels, k.x_row, x_pixel, k.w_row, k.w_column, block_floats, 0};
            const int64_t w_unit = l.kernel_w * c.in_channels * kGroupBlock;
            run_rows<kManyRegisters>(walk, {c.h, h, row + r, x_row, w_unit}, block, weight, start, outputs, i > 0);
            continue;
          }
          for (int64_t j = 0; j < outputs; j += kGroupBlock) {
            PixelBlock part = block;
            part.y += j;
            const Real* part_weight = weight + j / kGroupBlock * block_floats;
            const int64_t some = std::min<int64_t>(kGroupBlock, outputs - j);
            if (some > kLanes || kVectors != 2) {
              run_group<kVectors, kGroupSums / kVectors>(k, part, part_weight, start + j / kLanes, some, i > 0);
            } else {
              run_group<1, 8>(k, part, part_weight, start + j / kLanes, some, i > 0);
            }
          }
        }
      };
      each_strip(c, l.block, l.strip, row, column, run_strip);
    }
    packed_group = group;
    const int64_t columns = std::min(l.block.columns * step, out_w - column * step);
    for (int64_t r = 0; l.staged && r < rows; r++)
      for (int64_t v = 0; v < c.out_channels; v += kLanes)
        split_pixels(output + v * c.output_strides.c + r * c.h.step * c.output_strides.h, c.output_strides.c,
                     stage + r * y_row + v, l.output.width, std::min<int64_t>(kLanes, c.out_channels - v), columns);
    finish_block(c, {n, group * c.out_channels, c.out_channels, row, rows, column * step, columns});
  }
}

}  // namespace groupwise::GW_TARGET
