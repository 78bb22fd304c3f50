// The gradient of a weight of one tap, from copies of both tensors in the order in which a tile reads them. A tile that reads
// tensors in place meets a few numbers of each of many pixels, which meet few sets of the L1 cache.
#pragma once
#include "kernels/pixels/grad_weight-inl.h"
#include "simd/prefetch.h"

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

// Copies a whole number of vectors, or of fours.
template <int64_t N>
GW_INLINE void copy_whole(Real* to, const Real* from) {
  if constexpr (N % kLanes) {
    unroll<N / 4>([&](auto i) GW_LAMBDA { store_four(to + 4 * i, load_four(from + 4 * i)); });
  } else {
    unroll<N / kLanes>([&](auto i) GW_LAMBDA { store(to + i * kLanes, load(from + i * kLanes)); });
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
  // All channels of a few pixels are read before those of the next. The few fill cache lines of every panel: panels lie as far apart
  // as pages do, so that the cache would not keep a line of each.
  constexpr int64_t kFew = 4;
  const int64_t next = std::max(kFew, rows_ahead(s.w)) * s.w;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t x = 0; x < columns; x += kFew) {
      const Real* pixel = from + r * s.h + x * s.w;
      const int64_t at = r * columns + x, count = std::min(kFew, columns - x);
      each([&](int64_t first, auto width) GW_LAMBDA {
        Real* panel = to + first * positions + at * width();
        if (first + width() > channels) {
          for (int64_t k = 0; k < count; k++)
            for (int64_t c = 0; c < width(); c++)
              panel[k * width() + c] = first + c < channels ? pixel[k * s.w + first + c] : Real{};
        } else if (count < kFew) {
          for (int64_t k = 0; k < count; k++) copy_whole<width()>(panel + k * width(), pixel + k * s.w + first);
        } else {
          unroll<kFew>([&](auto k) GW_LAMBDA { copy_whole<width()>(panel + k * width(), pixel + k * s.w + first); });
          unroll<kFew>([&](auto k) GW_LAMBDA { prefetch_numbers<width()>(pixel + next + k * s.w + first); });
        }
      });
    }
}

// Writes the sums [output][width] to the weight.
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

// The channels that a block of sums is of.
struct SumsBlock {
  int64_t group, o, c, outputs, channels;

  SumsBlock(const Problem& p, const PanelsLayout& l, int64_t block) {
    const int64_t by_o = ceil_div(p.out_channels, l.outputs), by_c = ceil_div(p.in_channels, l.channels);
    o = block % by_o * l.outputs;
    c = block / by_o % by_c * l.channels;
    group = block / (by_o * by_c);
    outputs = std::min(l.outputs, p.out_channels - o);
    channels = std::min(l.channels, p.in_channels - c);
  }
  int64_t vectors() const { return ceil_div(channels, kLanes); }
  // The sums, [panel][output][channel of the panel], of whole tiles.
  int64_t rows() const { return round_up(outputs, kOuterOutputs); }
};

// Adds the parts of blocks of sums [begin, end), and writes them to the weight's gradient.
void write_panels(const GradWeight& work, const PanelsLayout& l, int64_t begin, int64_t end, Real* sums) {
  const Problem& p = work.problem;
  const WeightStrides& ws = work.weight_strides;
  const int64_t blocks = l.blocks(p);
  for (int64_t block = begin; block < end; block++) {
    const SumsBlock b(p, l, block);
    Real* from = sums + block * l.sums_floats();
    for (int64_t part = 1; part < l.parts; part++) {
      const Real* other = from + part * blocks * l.sums_floats();
      for (int64_t i = 0; i < b.rows() * b.vectors() * kLanes; i += kLanes) store(from + i, load(from + i) + load(other + i));
    }
    Real* to = work.grad_weight + b.group * ws.group + b.o * ws.o + b.c * ws.c;
    each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
      const int64_t width = count() * kLanes, channel = first * kLanes;
      write_panel_sums(from + channel * b.rows(), width, b.outputs, std::min(width, b.channels - channel), ws,
                       to + channel * ws.c);
    });
  }
}

// Runs tasks [begin, end), each of which sums a block of channels over a part of the positions. A thread copies a block of positions,
// and adds its products to the sums of all its tasks, before it goes on to the next positions.
void grad_weight_panels(const GradWeight& work, const PanelsLayout& l, int64_t begin, int64_t end, Real* scratch, Real* sums) {
  const Problem& p = work.problem;
  const Strides& gs = work.grad_output_strides;
  const Strides xs{work.input_strides.n, work.input_strides.c, work.input_strides.h * p.h.stride,
                   work.input_strides.w * p.w.stride};
  const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
  const int64_t image_blocks = p.batch * by_h * by_w, blocks = l.blocks(p);
  Real* const gradients = scratch + l.input_floats;
  int32_t slots[3];
  for (int i = 0; i < 3; i++) slots[i] = i * kLanes;
  for (int64_t from = begin, until; from < end; from = until) {
    const int64_t part = from / blocks, first_at = part * image_blocks / l.parts;
    until = std::min(end, (part + 1) * blocks);
    for (int64_t at = first_at; at < (part + 1) * image_blocks / l.parts; at++) {
      const int64_t row = at / by_w % by_h * l.block.rows, column = at % by_w * l.block.columns, n = at / (by_w * by_h);
      const int64_t rows = std::min(l.block.rows, p.h.out - row), columns = std::min(l.block.columns, p.w.out - column);
      const int64_t positions = rows * columns;
      const Real* copied = nullptr;
      for (int64_t task = from; task < until; task++) {
        const SumsBlock b(p, l, task % blocks);
        Real* to = sums + task * l.sums_floats();
        if (at == first_at) zero(to, b.rows() * b.vectors() * kLanes);
        const Real* x = work.input + n * xs.n + (b.group * p.in_channels + b.c) * xs.c + row * xs.h + column * xs.w;
        const Real* go = work.grad_output + n * gs.n + (b.group * p.out_channels + b.o) * gs.c + row * gs.h + column * gs.w;
        // Every block of input channels reads the same grad_output.
        if (work.sums && b.c == 0)
          add_block(go, gs, rows, columns, b.outputs, work.sums + (part * p.groups + b.group) * p.out_channels + b.o);
        if (!l.in_place && copied != x) {
          copied = x;
          copy_panels(x, xs, rows, columns, b.channels, scratch, [&](auto&& copy_one) GW_LAMBDA {
            each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
              copy_one(first * kLanes, std::integral_constant<int64_t, count() * kLanes>{});
            });
          });
        }
        copy_panels(go, gs, rows, columns, b.outputs, gradients, [&](auto&& copy_one) GW_LAMBDA {
          for (int64_t i = 0; i < b.outputs; i += kOuterOutputs) copy_one(i, std::integral_constant<int64_t, kOuterOutputs>{});
        });
        // After kGradWeightRun products an accumulator is added to the sums and starts again.
        const int64_t run = l.in_place ? positions : even_run(positions, kGradWeightRun);
        each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
          const int64_t width = count() * kLanes;
          PixelPositions s{x + first * kLanes,      gradients,     rows, columns, xs.h, xs.w,
                           columns * kOuterOutputs, kOuterOutputs, 1,    0,       0};
          if (!l.in_place) {
            s.rows = 1;
            s.x_pixel = width;
          }
          for (int64_t i = 0; i < b.rows(); i += kOuterOutputs, to += kOuterOutputs * width)
            for (int64_t pixel = 0; pixel < positions; pixel += run) {
              if (!l.in_place) {
                s.x = scratch + first * kLanes * positions + pixel * width;
                s.pixels = std::min(run, positions - pixel);
              }
              s.go = gradients + i * positions + pixel * kOuterOutputs;
              outer_tile<kOuterOutputs, count()>(s, slots, to, width);
            }
        });
      }
    }
  }
  if (l.parts == 1) write_panels(work, l, begin, end, sums);
}

}  // namespace groupwise::GW_TARGET
