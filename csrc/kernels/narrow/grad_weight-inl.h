// The gradient of a weight of depthwise and narrow groups, from channels-last tensors in place. Vectors hold output channels,
// whose lanes meet the input channels of their groups (lanes-inl.h). A tile keeps the sums of its taps and input channels in
// registers while it goes through the pixels of an image block, and skips taps outside the image.
#pragma once
#include "kernels/narrow/layout.h"
#include "kernels/narrow/lanes-inl.h"
#include "kernels/narrow/rows_weight-inl.h"
#include "kernels/narrow/slide_weight-inl.h"
#include "kernels/narrow/task-inl.h"
#include "kernels/block_sum-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/typed.h"
#include "simd/prefetch.h"

namespace groupwise::GW_TARGET {

// Sums KH x KW taps of IC input channels; sums[channel][row][column] are kLanes floats each, with the steps of `slots`.
template <class Lanes, int KH, int KW, int IC>
GW_NOINLINE void sum_place(const Reading& h, const Reading& w, const Real* x, const Real* go, const Packed& slots, Real* sums) {
  constexpr uint32_t kAll = (1u << KH * KW) - 1;
  Vec sum[KH * KW][IC];
  unroll<KH * KW * IC>([&](auto i) GW_LAMBDA { sum[i / IC][i % IC] = Vec{}; });
  // All columns of the outputs of [from, to) lie in the image.
  const int64_t last = w.size - w.first - (KW - 1) * w.dilation;
  const int64_t from = w.first >= 0 ? 0 : std::min(w.count, ceil_div(-w.first, w.stride));
  const int64_t to = last <= 0 ? from : std::max(from, std::min(w.count, ceil_div(last, w.stride)));
  const int64_t x_row = h.x, go_row = h.go, x_pixel = w.x, go_pixel = w.go, tap_row = h.x_tap, tap_column = w.x_tap;
  const auto pixel = [&](const Real* at, const Real* grad, auto whole, uint32_t there) GW_LAMBDA {
    Vec out[Lanes::kSums];
    Lanes::share(load(grad), out);
    unroll<Lanes::kSums>([&](auto i) GW_LAMBDA { pin(out[i]); });
    unroll<KH * KW>([&](auto t) GW_LAMBDA {
      if (!whole && !(there >> t & 1)) return;
      const Real* from = at + t / KW * tap_row + t % KW * tap_column;
      if constexpr (Lanes::kChannels > 0) {
        unroll<Lanes::kLoads>([&](auto l) GW_LAMBDA {
          const Vec in = Lanes::template take<l>(from);
          unroll<IC / Lanes::kLoads>([&](auto i) GW_LAMBDA {
            constexpr int c = l + i * Lanes::kLoads;
            add_product(sum[t][c], in, out[Lanes::sum_of(c)]);
          });
        });
      } else {
        unroll<IC>([&](auto c) GW_LAMBDA { add_product(sum[t][c], Lanes::template take<0>(from + c), out[0]); });
      }
    });
  };
  const auto rows_there = [&](int64_t r) GW_LAMBDA {
    uint32_t there = 0;
    for (int i = 0; i < KH; i++) {
      const int64_t at = h.first + r * h.stride + i * h.dilation;
      if (at >= 0 && at < h.size) there |= ((1u << KW) - 1) << i * KW;
    }
    return there;
  };
  for (int64_t r = 0; r < h.count; r++) {
    const uint32_t there = rows_there(r);
    const Real* at = x + r * x_row + from * x_pixel;
    const Real* grad = go + r * go_row + from * go_pixel;
    if (there == kAll) {
      for (int64_t n = to - from; n > 0; n--, at += x_pixel, grad += go_pixel) pixel(at, grad, std::true_type{}, kAll);
    } else if (there != 0) {
      for (int64_t n = to - from; n > 0; n--, at += x_pixel, grad += go_pixel) pixel(at, grad, std::false_type{}, there);
    }
  }
  // The columns at both ends go down the rows, since a column misses the same taps in all of them.
  for (int64_t p = 0; p < w.count; p++) {
    if (p == from) p = to;
    if (p == w.count) break;
    uint32_t columns = 0;
    for (int j = 0; j < KW; j++) {
      const int64_t at = w.first + p * w.stride + j * w.dilation;
      for (int i = 0; i < KH; i++)
        if (at >= 0 && at < w.size) columns |= 1u << (i * KW + j);
    }
    for (int64_t r = 0; r < h.count; r++) {
      const uint32_t there = columns & rows_there(r);
      pixel(x + r * x_row + p * x_pixel, go + r * go_row + p * go_pixel, std::false_type{}, there);
    }
  }
  unroll<KH * KW>([&](auto t) GW_LAMBDA {
    if constexpr (Lanes::kSums == 2) Lanes::restore(sum[t]);
    unroll<IC>([&](auto c) GW_LAMBDA {
      Real* at = sums + t / KW * slots.row + t % KW * slots.column + c * slots.channel;
      store(at, load(at) + sum[t][c]);
    });
  });
}

// Leaves only the outputs of which one of `taps` taps lies in the image, and returns how many it skips before them.
GW_INLINE int64_t keep_inside(Reading* a, int64_t taps) {
  const Range inside = outputs_inside(a->first, (taps - 1) * a->dilation, a->stride, a->count, a->size);
  a->first += inside.first * a->stride;
  a->count = inside.last - inside.first;
  return inside.first;
}

// Sums all taps of IC input channels of one vector of output channels.
template <class Lanes, int IC>
GW_INLINE void sum_places(const GradWeight& work, const Reading& h, const Reading& w, const Real* x, const Real* go,
                          const Packed& slots, Real* sums) {
  constexpr int kRows = IC == 1 ? 3 : IC == 2 ? 2 : 1;
  const Problem& p = work.problem;
  for (int64_t kh = 0, rows; kh < p.h.kernel; kh += rows) {
    rows = ceil_div(p.h.kernel - kh, ceil_div(p.h.kernel - kh, kRows));
    Reading high = h;
    high.first += kh * h.dilation;
    const int64_t skipped_rows = keep_inside(&high, rows);
    if (high.count == 0) continue;
    for (int64_t kw = 0, columns; kw < p.w.kernel; kw += columns) {
      columns = ceil_div(p.w.kernel - kw, ceil_div(p.w.kernel - kw, 3));
      Reading wide = w;
      wide.first += kw * w.dilation;
      const int64_t skipped_columns = keep_inside(&wide, columns);
      if (wide.count == 0) continue;
      const Real* from = x + kh * h.x_tap + kw * w.x_tap + skipped_rows * h.x + skipped_columns * w.x;
      const Real* grad = go + skipped_rows * h.go + skipped_columns * w.go;
      Real* to = sums + kh * slots.row + kw * slots.column;
      const auto place = [&](auto height) GW_LAMBDA {
        if (columns == 3) return sum_place<Lanes, height, 3, IC>(high, wide, from, grad, slots, to);
        if (columns == 2) return sum_place<Lanes, height, 2, IC>(high, wide, from, grad, slots, to);
        sum_place<Lanes, height, 1, IC>(high, wide, from, grad, slots, to);
      };
      if constexpr (kRows > 2)
        if (rows == 3) place(std::integral_constant<int, 3>{});
      if constexpr (kRows > 1)
        if (rows == 2) place(std::integral_constant<int, 2>{});
      if (rows == 1) place(std::integral_constant<int, 1>{});
    }
  }
}

// Prefetches a vector of what the next block of rows reads and this one does not.
inline void fetch_rows_below(const Reading& h, const Reading& w, int64_t taps, const Real* x, const Real* go) {
  const int64_t row = h.x / h.stride, pixel = w.x / w.stride;
  x += ((h.count - 1) * h.stride + (taps - 1) * h.dilation + 1) * row;
  for (int64_t r = 0; r < h.count * h.stride; r++)
    for (int64_t p = 0; p < w.count * w.stride; p++) prefetch(x + r * row + p * pixel);
  go += h.count * h.go;
  for (int64_t r = 0; r < h.count; r++)
    for (int64_t p = 0; p < w.count; p++) prefetch(go + r * h.go + p * w.go);
}

// Runs tasks [begin, end), each of which sums a block of output channels over one part of the samples and positions.
void grad_weight_narrow(const GradWeight& work, const GradWeightNarrowLayout& l, int64_t begin, int64_t end, Real* scratch,
                        Real* parts) {
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  const WeightStrides& ws = work.weight_strides;
  const int64_t taps = p.h.kernel * p.w.kernel, slots = p.in_channels * taps, all = p.groups * p.out_channels;
  const int64_t by_h = ceil_div(p.h.out, l.block.rows), by_w = ceil_div(p.w.out, l.block.columns);
  const int64_t image_blocks = p.batch * by_h * by_w;
  // The sums have the order of the weight's memory, if it is one of the two orders.
  const Packed packed = packed_order(l.parts == 1 && ws.c == 1, p.in_channels, p.h.kernel, p.w.kernel);
  for (int64_t task = begin; task < end; task++) {
    const int64_t part = task % l.parts, block = task / l.parts;
    const int64_t group = block * l.block.groups, channel = group * p.out_channels;
    const int64_t channels = block == l.blocks - 1 ? all - channel : l.block.groups * p.out_channels;
    const Runs runs = runs_of(p.out_channels, channels, true);
    const int64_t vectors = runs.count * runs.vectors;
    zero(scratch, vectors * packed.vector);
    for (int64_t image_block = part * image_blocks / l.parts; image_block < (part + 1) * image_blocks / l.parts;
         image_block++) {
      const int64_t column = image_block % by_w * l.block.columns, row = image_block / by_w % by_h * l.block.rows;
      const int64_t n = image_block / (by_w * by_h);
      const Reading h{row * p.h.stride - p.h.pad,
                      std::min(l.block.rows, p.h.out - row),
                      p.h.stride,
                      p.h.dilation,
                      p.h.in,
                      p.h.stride * xs.h,
                      gs.h,
                      p.h.dilation * xs.h};
      const Reading w{column * p.w.stride - p.w.pad,
                      std::min(l.block.columns, p.w.out - column),
                      p.w.stride,
                      p.w.dilation,
                      p.w.in,
                      p.w.stride * xs.w,
                      gs.w,
                      p.w.dilation * xs.w};
      const Real* x = work.input + n * xs.n + h.first * xs.h + w.first * xs.w;
      const Real* go = work.grad_output + n * gs.n + row * gs.h + column * gs.w;
      if (l.slides) {
        // The totals lie behind the sums.
        Real* totals = scratch + vectors * packed.vector;
        zero(totals, vectors * kLanes);
        with_lanes(p.in_channels, p.out_channels, [&]<class Lanes>(Lanes) {
          if constexpr (Lanes::kChannels == 1) {
            const auto run = [&](int64_t v, int64_t count) {
              const int64_t first = channel + runs.first(v);
              slide_block<Lanes>(h, w, x + first / p.out_channels, go + first, packed, scratch + v * packed.vector,
                                 totals + v * kLanes, count, l.ahead);
            };
            if (runs.whole > 0) run(0, runs.whole);
            if (runs.whole < runs.vectors) run(runs.whole, 1);
          }
        });
        if (work.sums) add_totals(totals, channels, work.sums + part * all + channel);
        continue;
      }
      if (work.sums) add_block(go + channel, gs, h.count, w.count, channels, work.sums + part * all + channel);
      with_lanes(p.in_channels, p.out_channels, [&]<class Lanes>(Lanes) {
        for (int64_t v = 0; v < vectors; v++) {
          const int64_t first = channel + runs.first(v);
          const Real* from = x + first / p.out_channels * p.in_channels;
          Real* sums = scratch + v * packed.vector;
          if (l.ahead && v % kVectorsALine == 0) fetch_rows_below(h, w, p.h.kernel, from, go + first);
          if constexpr (kManyRegisters && std::is_same_v<Lanes, LanesOfOne>)
            if (l.rows) {
              sum_rows_of_taps<Lanes>(p, h, w, from, go + first, packed, sums);
              continue;
            }
          if constexpr (Lanes::kChannels > 0) {
            sum_places<Lanes, Lanes::kChannels>(work, h, w, from, go + first, packed, sums);
          } else {
            int64_t i = 0;
            for (; i + 4 <= p.in_channels; i += 4)
              sum_places<Lanes, 4>(work, h, w, from + i, go + first, packed, sums + i * packed.channel);
            for (; i < p.in_channels; i++)
              sum_places<Lanes, 1>(work, h, w, from + i, go + first, packed, sums + i * packed.channel);
          }
        }
      });
    }
    for (int64_t v = 0; v < vectors; v++) {
      const int64_t first = channel + runs.first(v);
      const Real* from = scratch + v * packed.vector;
      if (l.parts > 1) {
        split_pixels(parts + (part * all + first) * slots, slots, from, kLanes, kLanes, slots);
        continue;
      }
      const auto at = [&](int64_t lane) { return begin_of(ws, p.out_channels, first + lane); };
      const bool row_by_row = ws.w == packed.column / kLanes && ws.h == packed.row / kLanes;
      if (row_by_row && (p.in_channels == 1 || ws.c == packed.channel / kLanes) && ws.group == p.out_channels * ws.o) {
        split_pixels(work.grad_weight + at(0), ws.o, from, kLanes, kLanes, slots);
        continue;
      }
      for (int64_t lane = 0; lane < kLanes; lane++)
        for (int64_t c = 0; c < p.in_channels; c++)
          for (int64_t t = 0; t < taps; t++)
            work.grad_weight[at(lane) + c * ws.c + t / p.w.kernel * ws.h + t % p.w.kernel * ws.w] =
                from[c * packed.channel + t * packed.column + lane];
    }
  }
}

}  // namespace groupwise::GW_TARGET
