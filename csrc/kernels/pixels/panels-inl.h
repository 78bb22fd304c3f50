// The gradient of a weight of one tap, from both tensors in place, or from copies in the order in which a tile reads them, where the
// caches would not keep the pixels (`PanelsLayout::in_place`).
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

// Copies `channels` of rows x columns pixels to panels, each [pixel][width of the panel], as far apart as `apart` pixels fill them; the
// last may end with zeros. each(f) calls f(first channel, std::integral_constant width) for every panel.
template <class Each>
GW_INLINE void copy_panels(const Real* from, const Strides& s, int64_t rows, int64_t columns, int64_t channels, Real* to,
                           int64_t apart, Each&& each) {
  if (s.c != 1 || s.w == 1) {
    each([&](int64_t first, auto width) GW_LAMBDA {
      pack_pixels({rows, columns, width()}, s, rows, columns, from + first * s.c, std::min<int64_t>(width(), channels - first),
                  0, 0, to + first * apart);
    });
    return;
  }
  // All channels of a few pixels are read before those of the next. The few fill cache lines of every panel.
  constexpr int64_t kFew = 4;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t x = 0; x < columns; x += kFew) {
      const Real* pixel = from + r * s.h + x * s.w;
      const int64_t at = r * columns + x, count = std::min(kFew, columns - x);
      each([&](int64_t first, auto width) GW_LAMBDA {
        Real* panel = to + first * apart + at * width();
        if (first + width() > channels) {
          for (int64_t k = 0; k < count; k++)
            for (int64_t c = 0; c < width(); c++)
              panel[k * width() + c] = first + c < channels ? pixel[k * s.w + first + c] : Real{};
        } else if (count < kFew) {
          for (int64_t k = 0; k < count; k++) copy_whole<width()>(panel + k * width(), pixel + k * s.w + first);
        } else {
          unroll<kFew>([&](auto k) GW_LAMBDA { copy_whole<width()>(panel + k * width(), pixel + k * s.w + first); });
        }
      });
    }
}

// Writes the sums [output][width] of neighbouring channels to the weight.
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
  int64_t last_tile, last_vector;  // where the last of them begin, counted from o and c

  SumsBlock(const Problem& p, const PanelsLayout& l, int64_t block) {
    const int64_t by_o = ceil_div(p.out_channels, l.outputs), by_c = ceil_div(p.in_channels, l.channels);
    o = block % by_o * l.outputs;
    c = block / by_o % by_c * l.channels;
    group = block / (by_o * by_c);
    outputs = std::min(l.outputs, p.out_channels - o);
    channels = std::min(l.channels, p.in_channels - c);
    // What is read in place starts early rather than end late.
    last_tile = l.in_place ? std::min(rows(), p.out_channels - o) - kOuterOutputs : rows() - kOuterOutputs;
    last_vector = l.in_place ? std::min(vectors() * kLanes, p.in_channels - c) - kLanes : (vectors() - 1) * kLanes;
  }
  int64_t vectors() const { return ceil_div(channels, kLanes); }
  // The sums, [panel][output][channel of the panel], of whole tiles.
  int64_t rows() const { return round_up(outputs, kOuterOutputs); }
  // Returns the first output of a tile, and the first channel of a vector.
  int64_t output(int64_t tile) const { return std::min(tile, last_tile); }
  int64_t channel(int64_t vector) const { return std::min(vector * kLanes, last_vector); }
};

// Adds the parts of blocks of sums [begin, end), the first of which lies at `sums`, and writes them to the weight's gradient.
void write_panels(const GradWeight& work, const PanelsLayout& l, int64_t begin, int64_t end, Real* sums) {
  const Problem& p = work.problem;
  const WeightStrides& ws = work.weight_strides;
  const int64_t blocks = l.blocks(p);
  for (int64_t block = begin; block < end; block++) {
    const SumsBlock b(p, l, block);
    Real* from = sums + (block - begin) * l.sums_floats();
    for (int64_t part = 1; part < l.parts; part++) {
      const Real* other = from + part * blocks * l.sums_floats();
      for (int64_t i = 0; i < b.rows() * b.vectors() * kLanes; i += kLanes) store(from + i, load(from + i) + load(other + i));
    }
    Real* to = work.grad_weight + b.group * ws.group + b.o * ws.o + b.c * ws.c;
    // Writes `channels` channels from one on. What starts early begins with sums that another tile or vector has too.
    const int64_t last_tile = b.rows() - kOuterOutputs, early = last_tile - b.output(last_tile);
    const auto write = [&](const Real* panel, int64_t width, int64_t channel, int64_t channels) {
      write_panel_sums(panel, width, last_tile, channels, ws, to + channel * ws.c);
      write_panel_sums(panel + (last_tile + early) * width, width, b.outputs - last_tile, channels, ws,
                       to + last_tile * ws.o + channel * ws.c);
    };
    each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
      const int64_t width = count() * kLanes, vector = first + count() - 1, channel = vector * kLanes;
      const Real* panel = from + first * kLanes * b.rows();
      if constexpr (count() > 1) write(panel, width, first * kLanes, width - kLanes);
      write(panel + width - kLanes + channel - b.channel(vector), width, channel,
            std::min<int64_t>(kLanes, b.channels - channel));
    });
  }
}

// The pixels of a tensor that a later task reads, or the rows of a weight that sums are written to. They are prefetched while tiles
// compute.
struct LaterPixels {
  const Real* from = nullptr;
  int64_t row = 0, pixel = 0, columns = 1, numbers = 0, count = 0, asked = 0;

  int64_t lines() const { return count * ceil_div(numbers, kLine); }
  // Asks for pixels until `done` of `all` are.
  GW_INLINE void ask(int64_t done, int64_t all) {
    for (const int64_t until = count * done / all; asked < until; asked++) {
      const Real* at = from + asked / columns * row + asked % columns * pixel;
      for (int64_t i = 0; i < numbers; i += kLine) prefetch(at + i);
    }
  }
};

// What a task reads of one block of positions.
struct PanelsTask {
  SumsBlock sums;
  int64_t rows, columns;
  const Real *x, *go;

  PanelsTask(const GradWeight& work, const PanelsLayout& l, int64_t task, int64_t at) : sums(work.problem, l, task) {
    const Problem& p = work.problem;
    const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
    const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
    const int64_t row = at / by_w % by_h * l.block.rows, column = at % by_w * l.block.columns, n = at / (by_w * by_h);
    rows = std::min(l.block.rows, p.h.out - row);
    columns = std::min(l.block.columns, p.w.out - column);
    x = work.input + n * xs.n + (sums.group * p.in_channels + sums.c) * xs.c + row * p.h.stride * xs.h +
        column * p.w.stride * xs.w;
    go = work.grad_output + n * gs.n + (sums.group * p.out_channels + sums.o) * gs.c + row * gs.h + column * gs.w;
  }
  // Returns pixels of either tensor, if their channels are neighbours.
  LaterPixels later(const Real* from, const Strides& s, int64_t channels) const {
    if (s.c != 1 || s.w == 1) return {};
    return {from, s.h, s.w, columns, channels, rows * columns};
  }
};

// Runs tasks [begin, end), each of which sums a block of channels over a part of the positions. A thread adds the products of a block
// of positions to the sums of several tasks before it goes on to the next positions. Those of one part lie in the scratch, or all in
// `parts`.
void grad_weight_panels(const GradWeight& work, const PanelsLayout& l, int64_t begin, int64_t end, Real* scratch, Real* parts) {
  const Problem& p = work.problem;
  const Strides& gs = work.grad_output_strides;
  const Strides xs{work.input_strides.n, work.input_strides.c, work.input_strides.h * p.h.stride,
                   work.input_strides.w * p.w.stride};
  const int64_t image_blocks = p.batch * ceil_div(p.w.out, l.block.columns) * ceil_div(p.h.out, l.block.rows);
  const int64_t blocks = l.blocks(p);
  const bool ahead = beyond_cache(work);
  Real* const gradients = scratch + l.input_floats;
  for (int64_t from = begin, until; from < end; from = until) {
    const int64_t part = from / blocks, first_at = part * image_blocks / l.parts, last_at = (part + 1) * image_blocks / l.parts;
    until = std::min({end, (part + 1) * blocks, from + l.together});
    Real* const sums = parts ? parts + from * l.sums_floats() : gradients + l.output_floats;
    for (int64_t at = first_at; at < last_at; at++) {
      const Real* last_x = nullptr;
      for (int64_t task = from; task < until; task++) {
        const PanelsTask t(work, l, task % blocks, at);
        const SumsBlock& b = t.sums;
        const int64_t positions = t.rows * t.columns, apart = panel_pixels(positions);
        Real* to = sums + (task - from) * l.sums_floats();
        // Every block of input channels reads the same grad_output.
        if (work.sums && b.c == 0)
          add_block(t.go, gs, t.rows, t.columns, b.outputs, work.sums + (part * p.groups + b.group) * p.out_channels + b.o);
        if (!l.in_place && last_x != t.x)
          copy_panels(t.x, xs, t.rows, t.columns, b.channels, scratch, apart, [&](auto&& copy_one) GW_LAMBDA {
            each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
              copy_one(first * kLanes, std::integral_constant<int64_t, count() * kLanes>{});
            });
          });
        last_x = t.x;
        if (!l.in_place)
          copy_panels(t.go, gs, t.rows, t.columns, b.outputs, gradients, apart, [&](auto&& copy_one) GW_LAMBDA {
            for (int64_t i = 0; i < b.outputs; i += kOuterOutputs)
              copy_one(i, std::integral_constant<int64_t, kOuterOutputs>{});
          });
        LaterPixels later_x, later_go, later_w;
        const bool same = task + 1 < until, more = at + 1 < last_at;
        if (ahead && (same || more || until < end)) {
          const int64_t later = same ? task + 1 : more ? from : until;
          const PanelsTask next(work, l, later % blocks, same ? at : more ? at + 1 : later / blocks * image_blocks / l.parts);
          // The first tasks read all gradients of a block of positions.
          if (!same || task + 1 - from < ceil_div(p.out_channels, l.outputs))
            later_go = next.later(next.go, gs, next.sums.outputs);
          if (next.x != last_x) later_x = next.later(next.x, xs, next.sums.channels);
        }
        if (const WeightStrides& ws = work.weight_strides; ahead && !more && l.parts == 1 && ws.c == 1)
          later_w = {work.grad_weight + b.group * ws.group + b.o * ws.o + b.c, 0, ws.o, b.outputs, b.channels, b.outputs};
        // Pixels are prefetched before each tile of a run. Where tiles are few, so many lines at once would hold up what a tile reads.
        constexpr int64_t kMostLines = 96;
        const int64_t tiles = ceil_div(b.vectors(), 3) * ceil_div(b.outputs, kOuterOutputs), all_pixels = tiles * positions;
        const bool asks = (later_x.lines() + later_go.lines() + later_w.lines()) * l.run <= kMostLines * all_pixels;
        int64_t done = 0;
        each_panel(b.vectors(), [&](int64_t first, auto count) GW_LAMBDA {
          const int64_t width = count() * kLanes;
          int32_t slots[count()];
          for (int i = 0; i < count(); i++) slots[i] = static_cast<int32_t>(l.in_place ? b.channel(first + i) : i * kLanes);
          PixelPositions all;
          if (l.in_place) {
            all = {t.x, t.go, t.rows, t.columns, xs.h, xs.w, gs.h, gs.w, 1, 0, 0};
          } else {
            all = {scratch + first * kLanes * apart, gradients, 1, positions, 0, width, 0, kOuterOutputs, 1, 0, 0};
          }
          if (at == first_at) zero(to, b.rows() * width);
          // After a run an accumulator is added to the sums and starts again. The panel's pixels of a run stay in the L1 cache.
          each_run(p, all, l.run, [&](PixelPositions run) GW_LAMBDA {
            const Real* const go = run.go;
            for (int64_t i = 0; i < b.rows(); i += kOuterOutputs) {
              run.go = go + (l.in_place ? b.output(i) : i * apart);
              if (asks) {
                done += run.rows * run.pixels;
                later_x.ask(done, all_pixels);
                later_go.ask(done, all_pixels);
                later_w.ask(done, all_pixels);
              }
              outer_tile<kOuterOutputs, count()>(run, slots, to + i * width, width);
            }
          });
          to += b.rows() * width;
        });
      }
    }
    if (l.parts == 1) write_panels(work, l, from, until, sums);
  }
}

}  // namespace groupwise::GW_TARGET
