// The gradient of a weight of one tap, from copies of both tensors in the order in which a tile reads them. A tile that reads
// tensors in place meets a few numbers of each of many pixels, which meet few sets of the L1 cache.
#pragma once
#include "kernels/pixels/grad_weight-inl.h"

namespace groupwise::GW_TARGET {

// Calls f(first, std::integral_constant count) for panels of three vectors, and of two where three would leave one.
template <class F>
GW_INLINE void each_panel(int64_t vectors, F&& f) {
  for (int64_t first = 0; first < vectors;) {
    const int64_t left = vectors - first, count = left == 4 ? 2 : std::min<int64_t>(3, left);
    switch (count) {
      case 3: f(first, std::integral_constant<int, 3>{}); break;
      case 2: f(first, std::integral_constant<int, 2>{}); break;
      default: f(first, std::integral_constant<int, 1>{});
    }
    first += count;
  }
}

// Copies `channels` of rows x columns pixels to panels, each [pixel][width of the panel], of which the last may end with zeros.
// each(f) calls f(first channel, std::integral_constant width) for every panel.
template <class Each>
GW_INLINE void copy_panels(const Real* from, const Strides& s, int64_t rows, int64_t columns, int64_t channels, Real* to,
                           Each&& each) {
  const int64_t positions = rows * columns;
  if (s.c != 1 || s.w == 1) {
    each([&](int64_t first, auto width) GW_LAMBDA {
      pack_pixels({rows, columns, width()}, s, rows, columns, from + first * s.c, std::min<int64_t>(width(), channels - first),
                  0, 0, to + first * positions);
    });
    return;
  }
  // All of a pixel's channels are read before those of the next.
  for (int64_t r = 0; r < rows; r++)
    for (int64_t x = 0; x < columns; x++) {
      const Real* pixel = from + r * s.h + x * s.w;
      const int64_t at = r * columns + x;
      each([&](int64_t first, auto width) GW_LAMBDA {
        Real* panel = to + first * positions + at * width();
        __builtin_prefetch(pixel + first + 2 * s.w);
        if (first + width() > channels) {
          for (int64_t c = 0; c < width(); c++) panel[c] = first + c < channels ? pixel[first + c] : Real{};
        } else {
          constexpr int64_t step = width() % kLanes ? 4 : kLanes;
          for (int64_t c = 0; c < width(); c += step) {
            if constexpr (width() % kLanes) {
              store_four(panel + c, load_four(pixel + first + c));
            } else {
              store(panel + c, load(pixel + first + c));
            }
          }
        }
      });
    }
}

// Writes the sums [output][width] to the weight, or its part.
inline void write_panel_sums(const Real* sums, int64_t width, int64_t outputs, int64_t channels, const WeightStrides& s,
                             Real* to) {
  if (s.c == 1) {
    for (int64_t i = 0; i < outputs; i++) copy(to + i * s.o, sums + i * width, channels);
  } else if (s.o == 1) {
    for (int64_t c = 0; c < channels; c += kLanes)
      split_pixels(to + c * s.c, s.c, sums + c, width, std::min<int64_t>(kLanes, channels - c), outputs);
  } else {
    for (int64_t i = 0; i < outputs; i++)
      for (int64_t c = 0; c < channels; c++) to[i * s.o + c * s.c] = sums[i * width + c];
  }
}

// Runs tasks [begin, end). The sums go to grad_weight, or to their place in `parts` if there are several parts.
void grad_weight_panels(const GradWeight& work, const PanelsLayout& l, int64_t begin, int64_t end, Real* scratch, Real* parts) {
  const Problem& p = work.problem;
  const Strides& gs = work.grad_output_strides;
  const Strides xs{work.input_strides.n, work.input_strides.c, work.input_strides.h * p.h.stride,
                   work.input_strides.w * p.w.stride};
  const int64_t by_o = ceil_div(p.out_channels, l.outputs), by_c = ceil_div(p.in_channels, l.channels);
  const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
  const int64_t image_blocks = p.batch * by_h * by_w;
  Real *const gradients = scratch + l.input_floats, *const sums = gradients + l.output_floats;
  int32_t slots[3];
  for (int i = 0; i < 3; i++) slots[i] = i * kLanes;
  for (int64_t task = begin; task < end; task++) {
    const int64_t c = task % by_c * l.channels, o = task / by_c % by_o * l.outputs, group = task / (by_c * by_o) % p.groups;
    const int64_t part = task / (by_c * by_o * p.groups);
    const int64_t outputs = std::min(l.outputs, p.out_channels - o), channels = std::min(l.channels, p.in_channels - c);
    const int64_t vectors = ceil_div(channels, kLanes), width = vectors * kLanes;
    zero(sums, round_up(outputs, kOuterOutputs) * width);
    for (int64_t at = part * image_blocks / l.parts; at < (part + 1) * image_blocks / l.parts; at++) {
      const int64_t row = at / by_w % by_h * l.block.rows, column = at % by_w * l.block.columns, n = at / (by_w * by_h);
      const int64_t rows = std::min(l.block.rows, p.h.out - row), columns = std::min(l.block.columns, p.w.out - column);
      const int64_t positions = rows * columns;
      const Real* x = work.input + n * xs.n + (group * p.in_channels + c) * xs.c + row * xs.h + column * xs.w;
      const Real* go = work.grad_output + n * gs.n + (group * p.out_channels + o) * gs.c + row * gs.h + column * gs.w;
      // Every block of input channels reads the same grad_output.
      if (work.sums && c == 0)
        add_block(go, gs, rows, columns, outputs, work.sums + (part * p.groups + group) * p.out_channels + o);
      if (!l.in_place)
        copy_panels(x, xs, rows, columns, channels, scratch, [&](auto&& copy_one) GW_LAMBDA {
          each_panel(vectors, [&](int64_t first, auto count)
                                  GW_LAMBDA { copy_one(first * kLanes, std::integral_constant<int64_t, count() * kLanes>{}); });
        });
      copy_panels(go, gs, rows, columns, outputs, gradients, [&](auto&& copy_one) GW_LAMBDA {
        for (int64_t i = 0; i < outputs; i += kOuterOutputs) copy_one(i, std::integral_constant<int64_t, kOuterOutputs>{});
      });
      each_panel(vectors, [&](int64_t first, auto count) GW_LAMBDA {
        PixelPositions s{x + first * kLanes,      gradients,     rows, columns, xs.h, xs.w,
                         columns * kOuterOutputs, kOuterOutputs, 1,    0,       0};
        if (!l.in_place) {
          s.x = scratch + first * kLanes * positions;
          s.x_row = columns * count() * kLanes;
          s.x_pixel = count() * kLanes;
        }
        for (int64_t i = 0; i < outputs; i += kOuterOutputs, s.go += kOuterOutputs * positions)
          outer_tile<kOuterOutputs, count()>(s, slots, sums + i * width + first * kLanes, width);
      });
    }
    const bool whole = l.parts == 1;
    const WeightStrides& ws = whole ? work.weight_strides : dense_weight_strides(p, false);
    Real* to = (whole ? work.grad_weight : parts + part * p.groups * p.out_channels * p.in_channels) + group * ws.group +
               o * ws.o + c * ws.c;
    write_panel_sums(sums, width, outputs, channels, ws, to);
  }
}

}  // namespace groupwise::GW_TARGET
