// Correlation with vectors along the output channels of depthwise and narrow groups. A tile computes 8 neighbouring pixels of
// one vector: it loads every input vector once for all taps of a row that meet it, and one vector of packed weights serves
// 8 sums. Channels-last tensors are read in place, without rows and columns outside the image. Contiguous ones are copied to
// zero-padded pixels of 16 channels in scratch, which pays where rows are short or strided.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/narrow/slide-inl.h"
#include "kernels/narrow/slide_phases-inl.h"
#include "kernels/narrow/task-inl.h"
#include "kernels/narrow/taps-inl.h"
#include "kernels/narrow/weights-inl.h"
#include "kernels/channels_layout.h"
#include "kernels/pack-inl.h"
#include "kernels/tiles.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Prefetches the inputs two tiles ahead, which at the end of a row are those of the next row, and the outputs there. A tile reads
// and writes as many streams of memory as it has inputs and outputs, more than the processor's own prefetcher follows. 3x3 depthwise
// of 96 channels 112x112 took 0.48 ms instead of 0.99 after other layers, and 0.46 instead of 0.55 after itself (medians, one thread).
// Where planes are summed it prefetches what the same tile of the next plane needs.
template <int S>
GW_INLINE void fetch_ahead(const Walk& k, const Real* x, const Real* y) {
  x += (k.rows - k.fresh) * k.x_row;
  const auto fetch = [&](const Real* from) GW_LAMBDA {
    for (int64_t row = 0; row < k.fresh; row++, from += k.x_row)
      unroll<S * kPixelTile>([&](auto p) GW_LAMBDA { prefetch(from + p * k.x_column); });
  };
  if (k.planes.ahead) {
    for (int64_t i = 0; i < k.planes.fresh; i++) fetch(x + k.planes.next - i * k.planes.x);
    y += k.planes.y;
  } else {
    fetch(x + 2 * S * kPixelTile * k.x_column);
    y += 2 * kPixelTile * k.y_pixel;
  }
  unroll<kPixelTile>([&](auto p) GW_LAMBDA { prefetch(y + p * k.y_pixel); });
}

// Computes the pixels of `vectors` vectors of output channels, one vector after the other, and stores the first `stored`
// pixels. The outputs are S inputs apart. KW is the number of taps in a row, or 0 for any.
template <class Lanes, int KW, int S, Edge E>
GW_NOINLINE void pixel_tile(const Walk& k, const Real* x, int64_t column, const Real* w, const Real* bias, Real* y,
                            int64_t stored, int64_t vectors) {
  const uint32_t there = E == Edge::any && KW > 0 ? inputs_there(k, column, kInputs<KW, S>) : 0;
  const bool clamps = k.clamp.bounds();
  int64_t left = k.vectors_a_group;
  for (int64_t v = 0; v < vectors; v++, w += k.w_vector, bias += k.bias_vector, y += kLanes) {
    if (k.fresh > 0 && v % kVectorsALine == 0) fetch_ahead<S>(k, x, y);
    TileSums<Lanes> sums;
    auto& sum = sums[0];
    if constexpr (Lanes::kSums == 1) {
      unroll<kPixelTile>([&](auto p) GW_LAMBDA { sum[p] = k.add ? Vec{} : load(bias); });
    } else {
      unroll<Lanes::kSums * kPixelTile>([&](auto i) GW_LAMBDA { sums[i / kPixelTile][i % kPixelTile] = Vec{}; });
    }
    if constexpr (KW > 0) {
      sum_taps<Lanes, KW, S, E>(k, x, w, there, sums);
    } else {
      sum_parts<Lanes, S, E>(k, x, w, column, sums);
    }
    if constexpr (Lanes::kSums == 2)
      unroll<kPixelTile>([&](auto p) GW_LAMBDA { sum[p] = Lanes::fold(sum[p], sums[1][p]) + (k.add ? Vec{} : load(bias)); });
    // Earlier runs are added here, and not where the sum begins, so that the sum of a run stays short.
    if (k.add) unroll<kPixelTile>([&](auto p) GW_LAMBDA { sum[p] += p < stored ? load(y + p * k.y_pixel) : Vec{}; });
    if (clamps) unroll<kPixelTile>([&](auto p) GW_LAMBDA { sum[p] = clamped(sum[p], k.clamp); });
    if (stored >= kPixelTile) {
      unroll<kPixelTile>([&](auto p) GW_LAMBDA { store(y + p * k.y_pixel, sum[p]); });
    } else {
      unroll<kPixelTile>([&](auto p) GW_LAMBDA {
        if (p < stored) store(y + p * k.y_pixel, sum[p]);
      });
    }
    if constexpr (Lanes::kStep > 0) {
      x += Lanes::kStep;
    } else if (--left == 0) {
      x += k.x_group;
      left = k.vectors_a_group;
    }
  }
}

// Vectors of output channels that are neighbours in memory, of one row of outputs.
struct PixelRow {
  const Real* x;  // the first tap of the first output, in column `column`
  int64_t column, stride;
  const Real* w;
  const Real* bias;
  Real* y;
  int64_t count, vectors;
};

// Picks the tile. Kernels 3 columns wide, and where they are common 1, 2 or 5, have tiles of their own, within the image and at
// its edge. All others share one, since each more instance takes seconds to compile.
template <class Lanes, int S>
GW_INLINE void run_tile(const Walk& k, const PixelRow& r, int64_t i) {
  constexpr bool kDepthwise = Lanes::kChannels == 1;
  const Real* x = r.x + i * S * k.x_column;
  Real* y = r.y + i * k.y_pixel;
  const int64_t column = r.column + i * S * k.unit, left = r.count - i;
  const int64_t reach = column + S * (kPixelTile - 1) * k.unit + (k.columns - 1) * k.tap;
  const bool within = column >= 0 && reach < k.width;
  const auto tile = [&](auto kw) GW_LAMBDA {
    if constexpr (kw != 0 || (kDepthwise && S == 1))
      if (within) return pixel_tile<Lanes, kw, S, Edge::none>(k, x, column, r.w, r.bias, y, left, r.vectors);
    if constexpr ((kw == 2 || kw == 3) && kDividesEdges<Lanes, S>) {
      constexpr uint32_t kLast = 1u << (kInputs<kw, S> - 1), kAll = 2 * kLast - 1;
      const uint32_t there = inputs_there(k, column, kInputs<kw, S>) & kAll;
      if constexpr (kw == 3)
        if (there == kAll - 1) return pixel_tile<Lanes, kw, S, Edge::first>(k, x, column, r.w, r.bias, y, left, r.vectors);
      if (there == kAll - kLast) return pixel_tile<Lanes, kw, S, Edge::last>(k, x, column, r.w, r.bias, y, left, r.vectors);
    }
    pixel_tile<Lanes, kw, S, Edge::any>(k, x, column, r.w, r.bias, y, left, r.vectors);
  };
  if (k.tap == k.unit) {
    if (k.columns == 3) return tile(std::integral_constant<int, 3>{});
    if constexpr (S == 1) {
      if (k.columns == 2) return tile(std::integral_constant<int, 2>{});
      if (k.columns == 1) return tile(std::integral_constant<int, 1>{});
    }
    if constexpr (kDepthwise)
      if (k.columns == 5) return tile(std::integral_constant<int, 5>{});
  }
  if constexpr (S == 1 || kDepthwise) tile(std::integral_constant<int, 0>{});
}

// Tells whether tiles compute outputs that are two inputs apart.
template <class Lanes>
GW_INLINE bool in_twos(const Phase& s) {
  return s.stride == 2 && s.spacing == 1 && (Lanes::kChannels == 1 || s.taps == 3);
}

template <class Lanes>
inline void run_pixels(const Walk& k, const PixelRow& r) {
  const auto tile = [&](const Walk& walk, const PixelRow& row, int64_t i) GW_LAMBDA {
    if (row.stride == 2) return run_tile<Lanes, 2>(walk, row, i);
    run_tile<Lanes, 1>(walk, row, i);
  };
  // The last tile begins early rather than ask a mask, where it may write outputs twice and few are computed twice.
  const bool divides = r.stride == 2 ? kDividesEdges<Lanes, 2> : kDividesEdges<Lanes, 1>;
  const bool early = divides && !k.add && k.columns <= 3 && r.count > kPixelTile && r.count % kPixelTile > kPixelTile / 2;
  for (int64_t at = 0; at < r.count; at += kPixelTile) {
    const int64_t i = early ? std::min(at, r.count - kPixelTile) : at;
    const int64_t lowest = r.column + i * r.stride * k.unit;
    const int64_t highest = lowest + (std::min<int64_t>(kPixelTile, r.count - i) - 1) * r.stride * k.unit;
    // Three taps have tiles of their own, which skip what lies outside the image.
    if (k.columns <= 3 || (highest >= k.left && lowest + (k.columns - 1) * k.tap < k.right)) {
      tile(k, r, i);
      continue;
    }
    const int64_t first = highest >= k.left ? 0 : ceil_div(k.left - highest, k.tap);
    const int64_t last = lowest >= k.right ? 0 : std::min(k.columns, (k.right - 1 - lowest) / k.tap + 1);
    Walk walk = k;
    walk.columns = std::max<int64_t>(0, last - first);
    PixelRow row = r;
    row.x += first * k.x_tap;
    row.column += first * k.tap;
    row.w += first * k.w_column;
    tile(walk, row, i);
  }
}

// Returns the taps k of [0, taps) for which at + k * spacing is in [0, size).
GW_INLINE Span clip(int64_t at, int64_t spacing, int64_t taps, int64_t size) {
  const int64_t first = at >= 0 ? 0 : ceil_div(-at, spacing);
  const int64_t last = at >= size ? 0 : std::min(taps, ceil_div(size - at, spacing));
  return {first, std::max(first, last)};
}

// What one accumulator sums of a group: input channels [channel, channel + channels), rows of taps, and planes.
struct TapRun {
  int64_t channel, channels, row, rows, plane, planes;
  bool first, last;
};

// Calls f for each run over `rows` rows of taps that lie in the image. Lanes that hold several groups sum all their channels, so a
// run is cut between rows; one channel's taps stay together. Planes share a run that has room for all else. Where no row lies in the
// image there is a run without rows, as outputs are their bias.
template <class Lanes, class F>
GW_INLINE void each_run(const Correlation& c, const Phase& s, int64_t rows, F&& f) {
  const int64_t all_planes = c.planes.count;
  int64_t channels = c.in_channels, run_rows = rows, planes = 1;
  if (Lanes::kChannels == 0) {
    channels = run_of_channels(c, c.h.taps * s.taps);
  } else if (Lanes::kChannels > 1 && rows > 0) {
    run_rows = even_run(rows, std::max<int64_t>(1, c.longest_run / std::max<int64_t>(1, Lanes::kChannels * s.taps)));
  }
  if (channels == c.in_channels && run_rows == rows)
    planes = even_run(all_planes, std::max<int64_t>(1, c.longest_run / std::max<int64_t>(1, channels * rows * s.taps)));
  for (int64_t plane = 0; plane < all_planes; plane += planes)
    for (int64_t channel = 0; channel < c.in_channels; channel += channels)
      for (int64_t row = 0; row == 0 || row < rows; row += std::max<int64_t>(1, run_rows)) {
        const int64_t some = std::min(run_rows, rows - row);
        f(TapRun{channel, std::min(channels, c.in_channels - channel), row, some, plane, std::min(planes, all_planes - plane),
                 plane == 0 && channel == 0 && row == 0,
                 plane + planes >= all_planes && channel + channels >= c.in_channels && row + some == rows});
      }
}

// Computes the outputs of a task for some vectors; `image` begins at the inputs of the first one.
template <class Lanes>
inline void run_vectors(const Correlation& c, const Image& image, const Packed& packed, const Vectors& v, const Outputs& out,
                        bool ahead, const Clamp& clamp) {
  if (slides_in_phases(c)) return run_phases(c, image, packed, v, out, ahead, clamp);
  if constexpr (Lanes::kChannels == 1)
    if (slides(c, kLanes, ahead) && (kSlidesPlanes<Lanes> || !is_deep(c.planes)))
      return run_slides<Lanes>(c, image, packed, v, out, ahead, clamp);
  // The phases of one row run together, so that what they read and write is still in the cache.
  for (int64_t r = 0; r < out.rows; r++) {
    const int64_t at = out.at_row + r * c.h.stride;
    const Span there = clip(at, c.h.spacing, c.h.taps, image.height);
    for (const Phase& s : c.w) {
      const int64_t columns = std::min(out.columns, s.out - out.column);
      // Outputs that are one tap apart share inputs, so a dilation is computed in as many turns. Where taps and outputs meet no
      // common column, taps are added one at a time.
      const int64_t apart = s.stride == 1 ? s.spacing : 1;
      const bool two = in_twos<Lanes>(s);
      const int64_t unit = two ? 1 : s.stride * apart;
      each_run<Lanes>(c, s, there.last - there.first, [&](const TapRun& run) {
        const bool last_rows = run.row + run.rows == there.last - there.first;
        Planes planes = c.planes;
        planes.count = run.planes;
        planes.next -= run.plane * planes.x;
        const Walk k{run.channels,
                     run.rows,
                     s.taps,
                     c.h.spacing * image.row,
                     unit * image.pixel,
                     s.spacing * image.pixel,
                     packed.channel,
                     c.h.index_step * packed.row,
                     s.index_step * packed.column,
                     packed.vector,
                     v.bias_vector,
                     unit,
                     s.spacing,
                     image.width,
                     image.left,
                     image.right,
                     v.a_group,
                     c.in_channels,
                     apart * s.step * out.y_pixel,
                     !run.first,
                     (c.planes.ahead ? run.last : ahead && last_rows) ? std::min(run.rows, c.h.stride) : 0,
                     run.last ? clamp : Clamp{},
                     planes};
        const int64_t kh = there.first + run.row;
        const Real* row = image.x + (at + kh * c.h.spacing) * image.row + run.channel + run.plane * c.planes.x;
        const Real* taps = v.w + run.channel * packed.channel + (c.h.index + kh * c.h.index_step) * packed.row +
                           s.index * packed.column + run.plane * c.planes.w;
        Real* y = v.y + r * out.y_row + s.first * out.y_pixel;
        for (int64_t start = 0; start < std::min(apart, columns); start++) {
          const int64_t x = out.at_column + start * s.stride + s.low;
          run_pixels<Lanes>(k, {row + x * image.pixel, x, two ? 2 : 1, taps, v.bias, y + start * s.step * out.y_pixel,
                                (columns - start - 1) / apart + 1, v.count});
        }
      });
    }
  }
}

// Packs the weights of one block of channels, vector by vector.
inline void pack_block(const Correlation& c, const ChannelsLayout& l, int64_t block, const Packed& packed, Real* to) {
  const int64_t all = c.groups * c.out_channels, channel = block * l.block.groups * c.out_channels;
  const Runs runs = runs_of(c.out_channels, l.channels_of(c, block), !l.staged);
  for (int64_t v = 0; v < runs.count * runs.vectors; v++) {
    const int64_t first = channel + runs.first(v), lanes = std::min<int64_t>(kLanes, all - first);
    pack_vector(c, l.kernel_h, l.kernel_w, packed, first, lanes, to + v * packed.vector);
    with_lanes(c.in_channels, c.out_channels,
               [&]<class Lanes>(Lanes) { arrange_vector<Lanes>(l.kernel_h, l.kernel_w, packed, to + v * packed.vector); });
  }
}

// Packs blocks [begin, end) for tensors that are read in place.
void pack_channels(const Correlation& c, const ChannelsLayout& l, int64_t begin, int64_t end, Real* packed) {
  const Packed order = packed_order(c.weight_strides.c == 1, c.in_channels, l.kernel_h, l.kernel_w);
  for (int64_t block = begin; block < end; block++) pack_block(c, l, block, order, packed + block * l.weight_floats);
}

// Runs tasks [begin, end) of a correlation.
void correlate_channels(const Correlation& c, const ChannelsLayout& l, int64_t begin, int64_t end, Real* scratch) {
  alignas(64) static const Real kNoBias[kLanes] = {};
  const int64_t by_w = ceil_div(c.w.front().out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows);
  const int64_t step = c.w.front().step;
  // The weights keep the order of the tensor.
  const Packed packed = packed_order(c.weight_strides.c == 1, c.in_channels, l.kernel_h, l.kernel_w);
  // Where blocks are staged, the last vector may end late: its bias is copied to where there is room.
  Real* staged_bias = scratch + l.input_floats;
  Real* own_weights = staged_bias + (l.staged ? kChannelBlock : 0);
  Real* stage = scratch + l.input_floats + l.weight_floats;
  const int64_t bias_step = c.bias || l.staged ? 1 : 0;
  Clamp clamp;
  const bool clamps = is_clamp(c.epilogue, &clamp);
  const int64_t finished_rows = slides(c, kLanes, l.ahead) || slides_in_phases(c) ? kSlideRows : 1;
  int64_t out_w = 0, packed_block = -1;
  for (const Phase& w : c.w) out_w += w.out;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * l.block.columns, row = task / by_w % by_h * l.block.rows;
    const int64_t n = task / (by_w * by_h) % c.batch, block = task / (by_w * by_h * c.batch);
    const int64_t group = block * l.block.groups, channel = group * c.out_channels;
    const int64_t channels = l.channels_of(c, block);
    const int64_t rows = std::min(l.block.rows, c.h.out - row);
    const Runs runs = runs_of(c.out_channels, channels, !l.staged);
    const Real* weights = c.packed ? c.packed + block * l.weight_floats : own_weights;
    const Real* bias = l.staged ? staged_bias : c.bias ? c.bias + channel : kNoBias;
    if (packed_block != block) {
      if (!c.packed) pack_block(c, l, block, packed, own_weights);
      for (int64_t v = 0; l.staged && v < channels; v += kLanes)
        store(staged_bias + v, c.bias ? load_some(c.bias + channel + v, std::min<int64_t>(kLanes, channels - v)) : Vec{});
    }
    packed_block = block;
    const Real* input = c.input + n * c.input_strides.n + group * c.in_channels * c.input_strides.c;
    Real* output = c.output + n * c.output_strides.n + channel * c.output_strides.c +
                   (c.h.first + row * c.h.step) * c.output_strides.h + column * step * c.output_strides.w;
    Image image{input, c.input_strides.h, c.input_strides.w, c.h.in, c.w.front().in, 0, c.w.front().in};
    const int64_t at_row = row * c.h.stride + c.h.low, at_column = column * c.w.front().stride;
    Outputs out{rows, column, l.block.columns, at_row, at_column, c.h.step * c.output_strides.h, c.output_strides.w};
    if (l.staged) {
      // Rows of padding are skipped; columns of padding are there, since tiles are faster without an edge.
      const int64_t low_h = std::max<int64_t>(0, at_row), low_w = at_column + l.low_w;
      pack_pixels(l.input, c.input_strides, c.h.in, c.w.front().in, input, channels, low_h, low_w, scratch);
      image = {scratch,
               l.input.columns * kChannelBlock,
               kChannelBlock,
               std::min(l.input.rows, c.h.in - low_h),
               l.input.columns,
               std::max<int64_t>(0, -low_w),
               std::min(l.input.columns, c.w.front().in - low_w)};
      out = {rows, column, l.block.columns, at_row - low_h, -l.low_w, l.output.columns * kChannelBlock, kChannelBlock};
    }
    const auto compute = [&](const Outputs& outputs, Real* to) {
      with_lanes(c.in_channels, c.out_channels, [&]<class Lanes>(Lanes) {
        const auto run = [&](int64_t vector, int64_t count) {
          // A vector reads from the inputs of its first group on; lanes of several groups keep their inputs together.
          const int64_t first = runs.first(vector), in_group = Lanes::kChannels > 0 ? 0 : first % c.out_channels;
          Image inputs = image;
          inputs.x += (first - in_group) / c.out_channels * c.in_channels;
          run_vectors<Lanes>(c, inputs, packed,
                             {weights + vector * packed.vector, bias + bias_step * first, bias_step * kLanes, to + first, count,
                              runs.count > 1 ? count : ceil_div(c.out_channels, kLanes)},
                             outputs, l.ahead, clamp);
        };
        for (int64_t v = 0; v < runs.count * runs.vectors; v += runs.vectors) {
          if (runs.whole > 0) run(v, runs.whole);
          if (runs.whole < runs.vectors) run(v + runs.whole, 1);
        }
      });
    };
    const int64_t columns = std::min(l.block.columns * step, out_w - column * step);
    const auto finish = [&](int64_t from, int64_t count) {
      finish_block(c, {n, channel, channels, from, count, column * step, columns});
    };
    if (l.staged) {
      compute(out, stage);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < channels; v += kLanes)
          split_pixels(output + v * c.output_strides.c + r * c.h.step * c.output_strides.h, c.output_strides.c,
                       stage + r * out.y_row + v, kChannelBlock, std::min<int64_t>(kLanes, channels - v), columns);
      if (!clamps) finish(row, rows);
    } else if (clamps) {
      compute(out, output);
    } else {
      // Rows are finished while they are in the cache.
      for (int64_t r = 0; r < rows; r += finished_rows) {
        Outputs some = out;
        some.rows = std::min(finished_rows, rows - r);
        some.at_row += r * c.h.stride;
        compute(some, output + r * out.y_row);
        finish(row + r, some.rows);
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
