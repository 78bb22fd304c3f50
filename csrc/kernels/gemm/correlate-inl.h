// Products of matrices: pixels by input channels, which are read in place, times packed panels of input by output channels. A tile
// of 2 vectors of output channels by 6 pixels is 12 sums, fed by 2 vectors of weights and 6 broadcast inputs; with AVX-512 it has
// 12 pixels of floats.
#pragma once
#include "kernels/clamp-inl.h"
#include "kernels/finish.h"
#include "kernels/gemm/layout.h"
#include "kernels/pack-inl.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"

namespace groupwise::GW_TARGET {

// A run of input channels of tiles that follow each other: start + products + added, in whole vectors.
struct GemmRun {
  int64_t tiles;
  const Real* x;
  int64_t x_pixel;  // numbers from pixel to pixel
  const Real* weight;
  int64_t channels;
  const Real* start;  // of every pixel
  const Real* added;  // as far apart as the outputs, which it may be; or null
  Real* y;
  int64_t y_pixel;
  int64_t x_ahead, y_ahead;  // how many pixels ahead of a tile inputs and outputs are prefetched, or 0
};

template <int PX, int OV>
GW_NOINLINE void gemm_run(const GemmRun& r, const Clamp* clamp) {
  constexpr int kBases = (PX + 2) / 3, kSums = PX * OV;
  const int64_t step = r.x_pixel;
  const Real *x = r.x, *added = r.added;
  Real* y = r.y;
  for (int64_t tile = 0; tile < r.tiles; tile++) {
    // The sum of pixel p and vector v is number p * OV + v.
    Vec sum[kSums];
    unroll<kSums>([&](auto i) GW_LAMBDA { sum[i] = load(r.start + i % OV * kLanes); });
    // x86 addresses have a base and one step times 1, 2 or 4, so a base reaches three pixels.
    const Real* base[kBases];
    unroll<kBases>([&](auto b) GW_LAMBDA { base[b] = x + 3 * b * step; });
    const Real* weight = r.weight;
    const Real* const end = weight + r.channels * OV * kLanes;
    const auto products = [&](const Real* last) GW_LAMBDA {
      for (; weight != last; weight += OV * kLanes) {
        Vec factor[OV];
        unroll<OV>([&](auto v) GW_LAMBDA {
          factor[v] = load(weight + v * kLanes);
          pin(factor[v]);
        });
        unroll<PX>([&](auto p) GW_LAMBDA {
          const Vec in = broadcast(base[p / 3][p % 3 * step]);
          unroll<OV>([&](auto v) GW_LAMBDA { add_product(sum[p * OV + v], factor[v], in); });
        });
        unroll<kBases>([&](auto b) GW_LAMBDA { base[b]++; });
      }
    };
    if (r.y_ahead > 0) unroll<PX>([&](auto p) GW_LAMBDA { prefetch_numbers<OV * kLanes>(y + (r.y_ahead + p) * r.y_pixel); });
    if (r.x_ahead > 0) {
      const int64_t next = r.x_ahead * step;
      // A line of each pixel is asked for at a time, and its products come between. (One loop of products for both cases took twice
      // as long: GCC 12 kept the sums in memory.)
      while (end - weight > kLine * OV * kLanes) {
        unroll<PX>([&](auto p) GW_LAMBDA { prefetch(base[p / 3] + p % 3 * step + next); });
        products(weight + kLine * OV * kLanes);
      }
      unroll<PX>([&](auto p) GW_LAMBDA { prefetch(base[p / 3] + p % 3 * step + next); });
    }
    products(end);
    if (added) {
      unroll<kSums>([&](auto i) GW_LAMBDA { sum[i] += load(added + i / OV * r.y_pixel + i % OV * kLanes); });
      added += PX * r.y_pixel;
    }
    if (clamp) unroll<kSums>([&](auto i) GW_LAMBDA { sum[i] = clamped(sum[i], *clamp); });
    unroll<kSums>([&](auto i) GW_LAMBDA { store(y + i / OV * r.y_pixel + i % OV * kLanes, sum[i]); });
    x += PX * step;
    y += PX * r.y_pixel;
  }
}

// Runs tiles of `pixels` pixels, of at most PX.
template <int PX, int OV>
GW_INLINE void gemm_run_of(const GemmRun& r, int64_t pixels, const Clamp* clamp) {
  if constexpr (PX > 1) {
    if (pixels < PX) return gemm_run_of<PX - 1, OV>(r, pixels, clamp);
  }
  gemm_run<PX, OV>(r, clamp);
}
GW_INLINE void gemm_run_of(const GemmRun& r, int64_t vectors, int64_t pixels, const Clamp* clamp) {
  if (vectors == 2) return gemm_run_of<gemm_pixels(kLanes, 2), 2>(r, pixels, clamp);
  if (vectors == 1) return gemm_run_of<gemm_pixels(kLanes, 1), 1>(r, pixels, clamp);
  gemm_run_of<gemm_pixels(kLanes, 3), 3>(r, pixels, clamp);
}

// Pixels of a row, and outputs of a panel.
struct GemmRow {
  const Real* x;
  Real* y;
  int64_t x_pixel, y_pixel, vectors;
  const Real* weight;
  int64_t channels, run;
  const Real* bias;
  const Real* residual;   // what is added beside the bias, as far apart as the outputs, or null
  const Clamp* clamp;     // or null
  bool fetch_x, fetch_y;  // whether inputs and outputs are prefetched

  // Returns how many pixels ahead of a tile that is.
  int64_t ahead(int64_t tile) const { return tile * rows_ahead(tile * x_pixel); }
};

// Computes tiles of `pixels` pixels that follow each other, whose outputs fill the vectors. Sums of a run are added to those before,
// which are in the outputs.
inline void gemm_tiles(const GemmRow& t, int64_t tiles, int64_t pixels) {
  static constexpr Real kZeros[(kPanelVectors + 1) * kLanes] = {};
  const int64_t ahead = t.ahead(pixels);
  GemmRun r{
      tiles, t.x, t.x_pixel, t.weight, 0, t.bias, t.residual, t.y, t.y_pixel, t.fetch_x ? ahead : 0, t.fetch_y ? ahead : 0};
  for (int64_t from = 0; from < t.channels; from += t.run) {
    r.channels = std::min(t.run, t.channels - from);
    gemm_run_of(r, t.vectors, pixels, from + t.run < t.channels ? nullptr : t.clamp);
    r.x += r.channels;
    r.weight += r.channels * t.vectors * kLanes;
    r.start = kZeros;
    r.added = t.y;
    r.y_ahead = 0;
  }
}

// Does the same for fewer outputs than the vectors have, by way of a buffer.
GW_NOINLINE void gemm_part_tiles(GemmRow t, int64_t outputs, int64_t tiles, int64_t pixels) {
  alignas(Vec) Real buffer[2 * gemm_pixels(kLanes, 2) * kLanes] = {};
  const int64_t width = t.vectors * kLanes, y_pixel = t.y_pixel;
  Real* y = t.y;
  const Real* residual = t.residual;
  t.y = buffer;
  t.y_pixel = width;
  const int64_t ahead = t.fetch_y ? t.ahead(pixels) : 0;
  t.fetch_y = false;
  if (residual) t.residual = buffer;
  for (int64_t tile = 0; tile < tiles; tile++) {
    for (int64_t p = 0; p < pixels && ahead > 0; p++)
      for (int64_t i = 0; i < outputs; i += kLine) prefetch(y + (ahead + p) * y_pixel + i);
    for (int64_t p = 0; p < pixels && residual; p++) copy(buffer + p * width, residual + p * y_pixel, outputs);
    gemm_tiles(t, 1, pixels);
    for (int64_t p = 0; p < pixels; p++) copy(y + p * y_pixel, buffer + p * width, outputs);
    t.x += pixels * t.x_pixel;
    y += pixels * y_pixel;
    if (residual) residual += pixels * y_pixel;
  }
}

// Packs panels [begin, end) of all groups, of which each has as many, as [input channel][output channel].
void pack_gemm(const Correlation& c, const GemmLayout& l, int64_t begin, int64_t end, Real* packed) {
  const WeightStrides& s = c.weight_strides;
  const int64_t panels = l.panels(c), of_part = l.panels(l.channels);
  for (int64_t task = begin; task < end; task++) {
    const int64_t group = task / panels, number = task % panels;
    const Panel panel = l.panel(c, number / of_part, number % of_part);
    const int64_t width = panel.vectors * kLanes, outputs = std::min(width, c.out_channels - panel.first);
    const Real* from = c.weight + group * s.group + panel.first * s.o;
    Real* to = packed + group * l.weight_floats + panel.first * c.in_channels;
    pack_tap(to, width, from, s, c.in_channels, outputs);
    if (outputs < width)
      for (int64_t i = 0; i < c.in_channels; i++) zero(to + i * width + outputs, width - outputs);
  }
}

// Runs tasks [begin, end) of a correlation, whose weights are packed. Its rows have no stride: `correlations_of` makes that one of the
// input.
void correlate_gemm(const Correlation& c, const GemmLayout& l, int64_t begin, int64_t end, Real*, const Real* packed) {
  const Phase& w = c.w.front();
  const Strides &xs = c.input_strides, &ys = c.output_strides;
  const int64_t by_w = ceil_div(w.out, l.block.columns), by_h = ceil_div(c.h.out, l.block.rows), blocks = c.batch * by_h * by_w;
  const EpilogueOf<Real>* e = c.epilogue;
  // A residual that no activation precedes is added before the sums are stored.
  const Real* residual = e && e->before.kind == Activation::none ? e->residual : nullptr;
  Clamp clamp;
  const bool in_store = residual ? is_clamp(e->after, &clamp) : is_clamp(e, &clamp);
  GemmRow t{};
  t.x_pixel = w.stride * xs.w;
  t.y_pixel = ys.w;
  t.channels = c.in_channels;
  t.run = even_run(c.in_channels, c.longest_run);
  t.fetch_y = l.ahead;
  t.clamp = in_store && clamp.bounds() ? &clamp : nullptr;
  for (int64_t task = begin; task < end; task++) {
    const int64_t group = task % c.groups, block = task / c.groups % blocks, part = task / (c.groups * blocks);
    const int64_t column = block % by_w * l.block.columns, row = block / by_w % by_h * l.block.rows;
    const int64_t n = block / (by_w * by_h);
    const int64_t rows = std::min(l.block.rows, c.h.out - row), columns = std::min(l.block.columns, w.out - column);
    const Real* input = c.input + n * xs.n + group * c.in_channels * xs.c + row * xs.h + column * t.x_pixel;
    Real* output = c.output + n * ys.n + group * c.out_channels * ys.c + row * ys.h + column * ys.w;
    const int64_t panels = l.panels(std::min(l.channels, c.out_channels - part * l.channels));
    for (int64_t number = 0; number < panels; number++) {
      const Panel panel = l.panel(c, part, number);
      const int64_t most = std::min<int64_t>(gemm_pixels(kLanes, panel.vectors), l.pixels), tiles = ceil_div(columns, most);
      t.weight = packed + group * l.weight_floats + panel.first * c.in_channels;
      t.vectors = panel.vectors;
      // A panel before this one has read the inputs.
      t.fetch_x = l.ahead && number == 0;
      const int64_t width = panel.vectors * kLanes, outputs = std::min(width, c.out_channels - panel.first);
      alignas(Vec) Real bias[(kPanelVectors + 1) * kLanes] = {};
      if (c.bias) copy(bias, c.bias + group * c.out_channels + panel.first, outputs);
      t.bias = bias;
      for (int64_t r = 0; r < rows; r++) {
        // Tiles are as even as they can be, as small ones wait for their sums: the first of them have a pixel more.
        int64_t from = 0;
        const auto run = [&](int64_t count, int64_t pixels) {
          if (count == 0) return;
          t.x = input + r * xs.h + from * t.x_pixel;
          t.y = output + panel.first + r * ys.h + from * t.y_pixel;
          t.residual = residual ? residual + (t.y - c.output) : nullptr;
          if (outputs == width) {
            gemm_tiles(t, count, pixels);
          } else {
            gemm_part_tiles(t, outputs, count, pixels);
          }
          from += count * pixels;
        };
        const int64_t larger = columns % tiles, pixels = columns / tiles;
        run(larger, pixels + 1);
        run(tiles - larger, pixels);
      }
    }
    const int64_t first = part * l.channels, outputs = std::min(l.channels, c.out_channels - first);
    for (int64_t r = 0; r < rows && !in_store; r++)
      finish_runs(c, output + first + r * ys.h, columns, ys.w, outputs, {nullptr, !residual});
  }
}

}  // namespace groupwise::GW_TARGET
