// Correlation as a sum of products of matrices: of pixels by input channels (of all taps of a row, where these follow each other
// in memory) times input by output channels.
#pragma once
#include "kernels/brgemm/layout.h"
#include "kernels/brgemm/product.h"
#include "kernels/pack-inl.h"

namespace groupwise::GW_TARGET {

// Returns how many of a phase's taps come before those of its clip.
GW_INLINE int64_t taps_before(const Phase& all, const Phase& clip) {
  return clip.taps > 0 && all.index_step != 0 ? (clip.index - all.index) / all.index_step : 0;
}

// Packs blocks [begin, end) of output channels, of which each group has as many, as [phase][row][column of taps][input
// channel][l.outputs], or, for products of planes, as [output channel][input channel].
void pack_brgemm(const Correlation& c, const BrgemmLayout& l, int64_t begin, int64_t end, float* packed) {
  const WeightStrides& s = c.weight_strides;
  const int64_t blocks = l.blocks(c), task_blocks = l.task_blocks();
  for (int64_t task = begin; task < end; task++) {
    const int64_t group = task / blocks, block = task % blocks, part = block / task_blocks * l.task_outputs;
    const int64_t o = part + block % task_blocks * l.outputs;
    const int64_t outputs = std::min({l.outputs, part + l.task_outputs - o, c.out_channels - o});
    if (outputs <= 0) continue;
    const float* from = c.weight + group * s.group + o * s.o;
    float* to = packed + group * l.weight_floats;
    if (l.planes) {
      to += o * c.in_channels;
      for (int64_t i = 0; i < outputs; i += kLanes)
        if (s.o == 1) {
          split_pixels(to + i * c.in_channels, c.in_channels, from + i, s.c, std::min<int64_t>(kLanes, outputs - i),
                       c.in_channels);
        } else {
          for (int64_t j = i; j < std::min<int64_t>(i + kLanes, outputs); j++)
            for (int64_t k = 0; k < c.in_channels; k++) to[j * c.in_channels + k] = from[j * s.o + k * s.c];
        }
      continue;
    }
    for (const Phase& w : c.w) {
      const int64_t taps = c.h.taps * w.taps, tap = c.in_channels * l.outputs;
      float* first = to + block * taps * tap;
      to += blocks * taps * tap;
      if (taps == 0) continue;
      const int64_t one = w.index_step;
      const float* at = from + c.h.index * s.h + w.index * s.w;
      if (taps > 1 && s.o != 1 && s.c != 1 && s.w == 1 && s.h == w.taps && (one == 1 || one == -1) && c.h.index_step == one) {
        // All taps of a pair of channels follow each other, those of a gradient of the input backwards.
        const float* lowest = one > 0 ? at : at - (taps - 1);
        float* last = one > 0 ? first : first + (taps - 1) * tap;
        for (int64_t i = 0; i < c.in_channels; i++)
          for (int64_t t = 0; t < taps; t += kLanes) {
            float* rows = last + one * t * tap + i * l.outputs;
            const float* pairs = lowest + i * s.c + t;
            const int64_t some = std::min<int64_t>(kLanes, taps - t);
            // Vectors of one or two taps, such as the ninth of 3x3 beside eight lanes, cost as much as full ones.
            if (some > 2) {
              split_pixels(rows, one * tap, pairs, s.o, some, outputs);
            } else {
              for (int64_t j = 0; j < outputs; j++)
                for (int64_t k = 0; k < some; k++) rows[k * one * tap + j] = pairs[j * s.o + k];
            }
          }
        continue;
      }
      for (int64_t t = 0; t < taps; t++) {
        const float* tap_at = at + t / w.taps * c.h.index_step * s.h + t % w.taps * one * s.w;
        float* next = first + t * tap;
        pack_tap(next, l.outputs, tap_at, s, c.in_channels, outputs);
      }
    }
  }
}

// Returns what the sums begin with beside the bias: a residual that no activation precedes, if the output is not staged.
inline const float* residual_of(const Correlation& c, const BrgemmLayout& l) {
  const Epilogue* e = c.epilogue;
  return e && e->residual && e->before.kind == Activation::none && !l.staged ? e->residual : nullptr;
}

// Sets `rows` rows of n floats to the bias, or to zero without one.
inline void begin_sums(float* to, int64_t row, int64_t rows, int64_t n, const float* bias) {
  for (int64_t r = 0; r < rows; r++)
    if (bias) {
      copy(to + r * row, bias, n);
    } else {
      zero(to + r * row, n);
    }
}

// Sets `pixels` sums of each of `outputs` channels, from `channel` of all groups on, to the bias and the residual.
inline void begin_plane_sums(const Correlation& c, float* to, int64_t channel, int64_t outputs, int64_t pixels,
                             const float* residual) {
  for (int64_t i = 0; i < outputs; i++) {
    const Vec bias = broadcast(c.bias ? c.bias[channel + i] : 0.0f);
    float* row = to + i * c.output_strides.c;
    const float* from = residual ? residual + (row - c.output) : nullptr;
    for (int64_t j = 0; j < pixels; j += kLanes)
      store_some(row + j, from ? bias + load_some(from + j, std::min<int64_t>(kLanes, pixels - j)) : bias, pixels - j);
  }
}

// A block of outputs of planes: rows x columns pixels from (row, column) on, which follow each other in memory, of output channels
// [first, last) of a group.
struct PlanesBlock {
  int64_t n, group, first, last, row, rows, column, columns;
};

// Computes a block of outputs, the inputs of some runs of channels after the other where they are gathered.
inline void correlate_planes(const Correlation& c, const BrgemmLayout& l, const PlanesBlock& block, float* scratch,
                             const float* packed) {
  const Multiply multiply = product().multiply;
  const Phase& w = c.w.front();
  const Strides &xs = c.input_strides, &ys = c.output_strides;
  const int64_t run = even_run(c.in_channels, c.longest_run), area = block.rows * block.columns;
  const float* x = c.input + block.n * xs.n + block.group * c.in_channels * xs.c + (block.row * c.h.stride + c.h.low) * xs.h +
                   block.column * w.stride + w.low;
  float* y = c.output + block.n * ys.n + block.group * c.out_channels * ys.c + block.row * w.out + block.column;
  const float* weight =
      l.packs_weight ? packed + block.group * l.weight_floats : c.weight + block.group * c.weight_strides.group;
  const int64_t w_row = l.packs_weight ? c.in_channels : c.weight_strides.o;
  const float* residual = residual_of(c, l);
  const int64_t together = l.packs_input ? l.gathered : c.in_channels, x_channel = l.packs_input ? area : xs.c;
  for (int64_t begin = 0; begin < c.in_channels; begin += together) {
    const int64_t end = std::min(begin + together, c.in_channels);
    const float* from = x + begin * xs.c;
    if (l.packs_input) {
      for (int64_t k = 0; k < end - begin; k++)
        copy_rows(scratch + k * area, block.columns, from + k * xs.c, c.h.stride * xs.h, w.stride, block.columns, block.rows);
      from = scratch;
    }
    for (int64_t p = 0; p < area; p += kProductPixels) {
      const int64_t pixels = std::min(kProductPixels, area - p);
      for (int64_t o = block.first; o < block.last; o += l.outputs) {
        const int64_t outputs = std::min(l.outputs, block.last - o);
        float* to = y + o * ys.c + p;
        const bool begins = begin == 0 && (c.bias || residual);
        if (begins) begin_plane_sums(c, to, block.group * c.out_channels + o, outputs, pixels, residual);
        for (int64_t k = begin; k < end; k += run)
          multiply(outputs, pixels, std::min(run, end - k), w_row, x_channel, ys.c, begins || k > 0, weight + o * w_row + k,
                   from + (k - begin) * x_channel + p, to);
        if (end == c.in_channels) finish_runs(c, to, outputs, ys.c, pixels, {nullptr, !residual});
      }
    }
  }
}

// Pixels that are summed together: of one line, of several lines, or of one with the padding between them.
struct PixelTile {
  const float* x;
  float* y;
  int64_t lines, pixels, x_line, y_line, x_pixel, y_pixel;
};

// A block of output channels of a group, and its weights.
struct ChannelsOut {
  int64_t group, first, count;
  const float* weight;
};

// Sums the taps h x w, which are part of those of c.h and `whole`, of input rows x_row floats and columns x_column floats apart.
inline void correlate_tile(const Correlation& c, const BrgemmLayout& l, const PixelTile& tile, const ChannelsOut& out,
                           const Phase& h, const Phase& w, const Phase& whole, int64_t x_row, int64_t x_column) {
  const Multiply multiply = product().multiply;
  const WeightStrides& s = c.weight_strides;
  // Neighbouring taps of packed pixels are one longer row of input channels.
  const bool merged = l.packs_weight && w.spacing == 1 && x_column == c.in_channels;
  const int64_t length = (merged ? w.taps : 1) * c.in_channels, run = h.taps * w.taps > 0 ? even_run(length, c.longest_run) : 0;
  const int64_t w_row = l.packs_weight ? l.outputs : s.c;
  const float* bias = c.bias ? c.bias + out.group * c.out_channels + out.first : nullptr;
  float* y = tile.y + out.first;
  // What follows the sums reads them anyway, and adds bias and residual then. A residual that is the output is what the sums
  // begin with.
  const bool late = c.epilogue && !l.staged, onto = residual_of(c, l) == c.output;
  const float* first = late ? nullptr : bias;
  bool add = first || onto;
  for (int64_t r = 0; r < tile.lines && !onto && (first || h.taps * w.taps == 0); r++)
    begin_sums(y + r * tile.y_line, tile.y_pixel, tile.pixels, out.count, first);
  for (int64_t kh = 0; kh < h.taps; kh++)
    for (int64_t kw = 0; kw < w.taps; kw += merged ? w.taps : 1) {
      const float* x = tile.x + kh * x_row + kw * w.spacing * x_column;
      const int64_t tap = (taps_before(c.h, h) + kh) * whole.taps + taps_before(whole, w) + kw;
      const float* weight =
          out.weight + (l.packs_weight ? tap * c.in_channels * l.outputs
                                       : (h.index + kh * h.index_step) * s.h + (w.index + kw * w.index_step) * s.w);
      // The weights of a run stay in the cache for all lines.
      for (int64_t k = 0; k < length; k += run, add = true)
        for (int64_t r = 0; r < tile.lines; r++)
          multiply(tile.pixels, out.count, std::min(run, length - k), tile.x_pixel, w_row, tile.y_pixel, add,
                   x + r * tile.x_line + k, weight + k * w_row, y + r * tile.y_line);
    }
  for (int64_t r = 0; r < tile.lines && late; r++)
    finish_runs(c, y + r * tile.y_line, tile.pixels, tile.y_pixel, out.count, {bias, !onto});
}

// Runs tasks [begin, end) of a correlation, whose weights are packed already.
void correlate_brgemm(const Correlation& c, const BrgemmLayout& l, int64_t begin, int64_t end, float* scratch,
                      const float* packed) {
  const int64_t by_w = ceil_div(widest(c.w), l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const int64_t by_o = ceil_div(c.out_channels, l.task_outputs);
  const int64_t step = c.w.front().step, stride = c.w.front().stride;
  const Strides &xs = c.input_strides, &ys = c.output_strides;
  float* stage = scratch + l.input_floats;
  int64_t out_w = 0;
  for (const Phase& w : c.w) out_w += w.out;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    const int64_t n = task / (by_w * by_h) % c.batch, part = task / (by_w * by_h * c.batch);
    const int64_t group = part / by_o, first = part % by_o * l.task_outputs;
    const int64_t last = std::min(first + l.task_outputs, c.out_channels);
    const int64_t rows = std::min(l.block.rows, c.h.out - row);
    if (l.planes) {
      const int64_t columns = std::min(l.block.columns, c.w.front().out - column);
      correlate_planes(c, l, {n, group, first, last, row, rows, column, columns}, scratch, packed);
      continue;
    }
    const Phase h = clipped(c.h, row, rows);
    const int64_t low_h = row * c.h.stride + h.low, low_w = column * stride + l.low_w;
    const float* input = c.input + n * xs.n + group * c.in_channels * xs.c;
    int64_t x_row = xs.h, x_column = xs.w;
    if (l.packs_input) {
      Pixels pixels = l.input;
      pixels.rows = std::min(pixels.rows, (rows - 1) * c.h.stride + h.span() + 1);
      if (h.taps > 0) pack_pixels(pixels, xs, c.h.in, c.w.front().in, input, c.in_channels, low_h, low_w, scratch);
      x_column = l.input.width;
      x_row = l.input.columns * x_column;
    }
    float* output =
        c.output + n * ys.n + group * c.out_channels * ys.c + (c.h.first + row * c.h.step) * ys.h + column * step * ys.w;
    const int64_t y_column = l.staged ? l.output.width : ys.w;
    const int64_t y_row = l.staged ? l.output.columns * y_column : c.h.step * ys.h;
    const float* weight = packed + group * l.weight_floats;
    for (const Phase& whole : c.w) {
      const int64_t columns = std::min(l.block.columns, whole.out - column);
      const Phase w = clipped(whole, column, std::max<int64_t>(1, columns));
      const bool reads = h.taps * w.taps > 0;
      const float* x = l.packs_input ? scratch + (column * stride + w.low - low_w) * x_column
                                     : input + low_h * x_row + (column * stride + w.low) * x_column;
      float* y = (l.staged ? stage : output) + whole.first * y_column;
      const int64_t lines = columns <= 0 ? 0 : l.joined ? 1 : rows;
      const int64_t pixels = l.joined ? (rows - 1) * l.input.columns + columns : columns;
      const int64_t tile = even_run(std::max<int64_t>(1, pixels), l.rows);
      // Several short lines are a tile.
      const int64_t together = tile < pixels ? 1 : std::max<int64_t>(1, l.rows / std::max<int64_t>(1, pixels));
      // Computes a block of output channels of the pixels from p on of lines from r on.
      const auto compute = [&](int64_t o, int64_t r, int64_t p) {
        const int64_t packed_o = part % by_o * l.task_blocks() * l.outputs + o - first;
        const ChannelsOut out{group, o, std::min(l.outputs, last - o),
                              l.packs_weight ? weight + packed_o * c.h.taps * whole.taps * c.in_channels
                                             : c.weight + group * c.weight_strides.group + o};
        const PixelTile some{reads ? x + r * c.h.stride * x_row + p * stride * x_column : nullptr,
                             y + r * y_row + p * step * y_column,
                             std::min(together, lines - r),
                             std::min(tile, pixels - p),
                             reads ? c.h.stride * x_row : 0,
                             y_row,
                             stride * x_column,
                             step * y_column};
        correlate_tile(c, l, some, out, h, w, whole, h.spacing * x_row, x_column);
      };
      const auto each_pixel = [&](auto&& f) {
        for (int64_t r = 0; r < lines; r += together)
          for (int64_t p = 0; p < pixels; p += tile) f(r, p);
      };
      const auto each_block = [&](auto&& f) {
        for (int64_t o = first; o < last; o += l.outputs) f(o);
      };
      if (l.channels_inside) {
        each_pixel([&](int64_t r, int64_t p) { each_block([&](int64_t o) { compute(o, r, p); }); });
      } else {
        each_block([&](int64_t o) { each_pixel([&](int64_t r, int64_t p) { compute(o, r, p); }); });
      }
      weight += l.blocks(c) * l.outputs * c.h.taps * whole.taps * c.in_channels;
    }
    if (!l.staged) continue;
    const int64_t columns = std::min(l.block.columns * step, out_w - column * step);
    for (int64_t r = 0; r < rows; r++) {
      float* to = output + r * c.h.step * ys.h;
      const float* from = stage + r * y_row;
      if (ys.c == 1) {
        for (int64_t i = 0; i < columns; i++) copy(to + i * ys.w, from + i * y_column, c.out_channels);
      } else {
        for (int64_t v = 0; v < c.out_channels; v += kLanes)
          split_pixels(to + v * ys.c, ys.c, from + v, y_column, std::min<int64_t>(kLanes, c.out_channels - v), columns);
      }
    }
    finish_block(c, {n, group * c.out_channels, c.out_channels, row, rows, column * step, columns});
  }
  if (product().release) product().release();
}

}  // namespace groupwise::GW_TARGET
