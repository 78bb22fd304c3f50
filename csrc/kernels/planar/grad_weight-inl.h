// The gradient of a weight, with lanes along the width. Each accumulator is one weight of the tile, kLanes partial sums wide,
// that stays in its register while the tile goes through the positions of a block; its lanes are summed at the end. A tile
// computes 4 output channels x 3 (input channel, tap) pairs; or, for one output channel, a few rows of taps, keeping rows of
// grad_output in registers while those of the input move past them.
#pragma once
#include "kernels/planar/layout.h"
#include "kernels/block_sum-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/planar/lone_rows_weight-inl.h"
#include "kernels/tiles.h"
#include "kernels/typed.h"
#include "simd/simd.h"

#include <type_traits>

namespace groupwise::GW_TARGET {

// One block of scratch as a tile sees it.
struct PositionBlock {
  const Real* x;
  const Real* go;
  int64_t rows, vectors, rest;        // of grad_output; vectors are whole ones of a row, rest the floats after them
  int64_t x_row, go_row, go_channel;  // x_row: between the inputs of neighbouring output rows
};

// Adds the sum over all positions of go[o] * x[slot] to sums[o][slot], for OC channels by N slots. `InPlace`: what follows
// a row may be outside the tensor. Scratch is not loaded by masks, which takes a third more time.
template <int OC, int N, bool InPlace>
GW_NOINLINE void slot_tile(const PositionBlock& s, const int32_t* slot, Real* sums, int64_t per_output) {
  Vec sum[OC][N];
  unroll<OC>([&](auto o) GW_LAMBDA { unroll<N>([&](auto n) GW_LAMBDA { sum[o][n] = Vec{}; }); });
  for (int64_t r = 0; r < s.rows; r++) {
    const Real* x = s.x + r * s.x_row;
    const Real* go = s.go + r * s.go_row;
    const auto vector = [&](auto whole) GW_LAMBDA {
      Vec in[N];
      unroll<N>([&](auto n) GW_LAMBDA {
        if constexpr (InPlace && !whole) {
          in[n] = load_some(x + slot[n], s.rest);
        } else {
          in[n] = load(x + slot[n]);
          if constexpr (!whole) in[n] = keep(in[n], s.rest);
        }
        pin(in[n]);
      });
      unroll<OC>([&](auto o) GW_LAMBDA {
        Vec out = InPlace && !whole ? load_some(go + o * s.go_channel, s.rest) : load(go + o * s.go_channel);
        pin(out);
        unroll<N>([&](auto n) GW_LAMBDA { add_product(sum[o][n], in[n], out); });
      });
    };
    for (int64_t v = 0; v < s.vectors; v++, x += kLanes, go += kLanes) vector(std::true_type{});
    if (s.rest) vector(std::false_type{});
  }
  add_sums(sum, sums, per_output);
}

// Sums KH x KW taps of one output channel, with grad_output's last KH rows in registers. `pitch` is the distance of input rows
// that follow each other, `go_row` that of the rows of grad_output that meet them.
template <int KH, int KW>
GW_NOINLINE void tap_tile(const PositionBlock& s, int64_t pitch, const int32_t* column, Real* sums, int64_t w_row) {
  Vec sum[KH][KW];
  unroll<KH>([&](auto i) GW_LAMBDA { unroll<KW>([&](auto j) GW_LAMBDA { sum[i][j] = Vec{}; }); });
  const auto accumulate = [&](const Real* x, const Real* go, auto whole) GW_LAMBDA {
    Vec out[KH] = {};
    // Input row r meets grad_output's rows r - i, for the taps i of [LO, HI); the newest is loaded while there is one.
    const auto row = [&]<int LO, int HI>(int64_t r) GW_LAMBDA {
      unroll<KH - 1>([&](auto i) GW_LAMBDA { out[KH - 1 - i] = out[KH - 2 - i]; });
      if constexpr (LO == 0) out[0] = whole || !kMasks ? load(go + r * s.go_row) : load_some(go + r * s.go_row, s.rest);
      unroll<KW>([&](auto j) GW_LAMBDA {
        Vec in = load(x + r * pitch + column[j]);
        if constexpr (!whole) in = keep(in, s.rest);
        pin(in);
        unroll<HI - LO>([&](auto n) GW_LAMBDA { add_product(sum[LO + n][j], in, out[LO + n]); });
      });
    };
    unroll<KH - 1>([&](auto r) GW_LAMBDA { row.template operator()<0, r + 1>(r); });
    for (int64_t r = KH - 1; r < s.rows; r++) row.template operator()<0, KH>(r);
    unroll<KH - 1>([&](auto r) GW_LAMBDA { row.template operator()<r + 1, KH>(s.rows + r); });
  };
  for (int64_t v = 0; v < s.vectors; v++) accumulate(s.x + v * kLanes, s.go + v * kLanes, std::true_type{});
  if (s.rest) accumulate(s.x + s.vectors * kLanes, s.go + s.vectors * kLanes, std::false_type{});
  add_sums(sum, sums, w_row);
}

// Where the inputs of a block's first output lie in the image.
struct Place {
  int64_t row, column;
};

// Leaves only the columns of outputs that some of `taps` taps from kw on reads inside the image, in whole vectors as far as there
// are columns: what a last vector reads beyond them is padding.
GW_INLINE PositionBlock within_columns(const Problem& p, const PositionBlock& block, const Place& at, int64_t kw,
                                       int64_t taps) {
  const int64_t count = block.vectors * kLanes + block.rest;
  const Range there = outputs_inside(at.column + kw * p.w.dilation, (taps - 1) * p.w.dilation, p.w.stride, count, p.w.in);
  const int64_t columns = std::min(count - there.first, round_up(there.last - there.first, kLanes));
  PositionBlock s = block;
  // A part of a vector costs as much as a whole one.
  if (ceil_div(columns, kLanes) == ceil_div(count, kLanes)) return s;
  s.x += there.first;
  s.go += there.first;
  s.vectors = columns / kLanes;
  s.rest = columns % kLanes;
  return s;
}

template <int KH>
void tap_columns(const Problem& p, const GradWeightLayout& l, const PositionBlock& block, const Place& at, int64_t pitch,
                 Real* sums) {
  const int64_t taps = p.w.kernel;
  for (int64_t kw = 0, take; kw < taps; kw += take) {
    take = ceil_div(taps - kw, ceil_div(taps - kw, tap_columns_of(KH)));
    PositionBlock clip;
    if (l.clip) {
      clip = within_columns(p, block, at, kw, take);
      if (clip.vectors + clip.rest == 0) continue;
    }
    const PositionBlock& s = l.clip ? clip : block;
    const int32_t* column = l.columns.data() + kw;
    unroll<tap_columns_of(KH)>([&](auto n) GW_LAMBDA {
      if (take == n + 1) tap_tile<KH, n + 1>(s, pitch, column, sums + kw, taps);
    });
  }
}

// Calls f(positions, n, count) for the slots of all pairs of an input channel and a tap, three at a time and then singly, with
// the positions that the taps of these slots read inside the image.
template <class F>
GW_INLINE void each_slots(const Problem& p, const GradWeightLayout& l, const PositionBlock& block, const Place& at, F&& f) {
  const int64_t taps = p.h.kernel * p.w.kernel, slots = p.in_channels * taps;
  for (int64_t n = 0, count; n < slots; n += count) {
    count = slots - n >= 3 ? 3 : 1;
    if (!l.clip) {
      f(block, n, count);
      continue;
    }
    int64_t kh = n % taps / p.w.kernel, last_kh = (n + count - 1) % taps / p.w.kernel, kw = n % p.w.kernel, columns = count;
    if (kw + count > p.w.kernel) kw = 0, columns = p.w.kernel;
    if (n % taps + count > taps) kh = 0, last_kh = p.h.kernel - 1;
    PositionBlock s = within_columns(p, block, at, kw, columns);
    const Range rows =
        outputs_inside(at.row + kh * p.h.dilation, (last_kh - kh) * p.h.dilation, p.h.stride, block.rows, p.h.in);
    s.x += rows.first * s.x_row;
    s.go += rows.first * s.go_row;
    s.rows = rows.last - rows.first;
    if (s.rows > 0 && s.vectors + s.rest > 0) f(s, n, count);
  }
}

// Sums all taps of one pair of channels. Rows of grad_output that are a dilation apart meet the same input rows in neighbouring
// taps. A strided convolution has no such rows, and sums its taps one row at a time.
inline void run_taps(const Problem& p, const GradWeightLayout& l, const PositionBlock& block, const Place& at, int64_t rows,
                     Real* sums) {
  const int64_t apart = p.h.stride == 1 ? p.h.dilation : 1;
  for (int64_t start = 0; start < std::min(apart, rows); start++) {
    const int64_t count = (rows - start - 1) / apart + 1;
    const int64_t most = p.h.stride > 1 ? 1 : count >= kTapRows ? kTapRows : count >= 3 ? 3 : 1;
    for (int64_t kh = 0, take; kh < p.h.kernel; kh += take) {
      take = ceil_div(p.h.kernel - kh, ceil_div(p.h.kernel - kh, most));
      PositionBlock s = block;
      s.x += (start * p.h.stride + kh * p.h.dilation) * l.input.row;
      s.go += start * block.go_row;
      s.go_row = apart * block.go_row;
      s.rows = count;
      const int64_t pitch = apart * p.h.stride * l.input.row;
      if (l.clip) {
        const Range there = outputs_inside(at.row + start * p.h.stride + kh * p.h.dilation, (take - 1) * p.h.dilation,
                                           apart * p.h.stride, count, p.h.in);
        if (there.first == there.last) continue;
        // A tile needs as many rows of outputs as it has rows of taps.
        const int64_t last = std::min(count, std::max(there.last, there.first + take));
        const int64_t first = std::max<int64_t>(0, std::min(there.first, last - take));
        s.x += first * pitch;
        s.go += first * s.go_row;
        s.rows = last - first;
      }
      Real* to = sums + kh * p.w.kernel;
      unroll<kTapRows>([&](auto n) GW_LAMBDA {
        if (take == n + 1) tap_columns<n + 1>(p, l, s, at, pitch, to);
      });
    }
  }
}

// Runs tasks [begin, end), each of which sums a block of groups and output channels over one part of the samples and positions.
// The sums go to grad_weight, or to their place in `parts` if there are several parts.
void grad_weight_planar(const GradWeight& work, const GradWeightLayout& l, int64_t begin, int64_t end, Real* scratch,
                        Real* parts) {
  const Problem& p = work.problem;
  const int64_t taps = p.h.kernel * p.w.kernel, slots = p.in_channels * taps;
  const int64_t by_o = ceil_div(p.out_channels, l.outputs), by_g = ceil_div(p.groups, l.block.groups);
  const int64_t by_w = ceil_div(p.w.out, l.block.columns), by_h = ceil_div(p.h.out, l.block.rows);
  const int64_t image_blocks = p.batch * by_h * by_w;
  Real* go = scratch + l.input_floats;
  Real* sums = go + l.output_floats;
  if (l.input.wide && !l.in_place && !l.lone_rows) zero(scratch, l.input_floats + l.output_floats);
  for (int64_t task = begin; task < end; task++) {
    const int64_t part = task % l.parts, o = task / l.parts % by_o * l.outputs;
    const int64_t group = task / (l.parts * by_o) % by_g * l.block.groups;
    const int64_t groups = std::min(l.block.groups, p.groups - group), outputs = std::min(l.outputs, p.out_channels - o);
    const int64_t fours = outputs / 4 * 4;
    zero(sums, groups * outputs * slots);
    const int64_t end_block = (part + 1) * image_blocks / l.parts;
    for (int64_t image_block = part * image_blocks / l.parts, taken; image_block < end_block; image_block += taken) {
      const int64_t column = image_block % by_w * l.block.columns, row = image_block / by_w % by_h * l.block.rows;
      const int64_t n = image_block / (by_w * by_h);
      // Samples of one row each are summed as rows of a plane are, up to a run of sums.
      const bool merged = l.lone_rows && p.h.out == 1 && by_w == 1;
      taken = merged ? std::min(end_block - image_block, std::max<int64_t>(1, kRun / ceil_div(p.w.out, kLanes))) : 1;
      const int64_t rows = std::min(l.block.rows, p.h.out - row), columns = std::min(l.block.columns, p.w.out - column);
      const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
      const Real* input = work.input + n * xs.n + group * p.in_channels * xs.c;
      // A block of several groups has all their outputs, which are then neighbours.
      const Real* output = work.grad_output + n * gs.n + (group * p.out_channels + o) * gs.c;
      for (int64_t i = 0; work.sums && i < taken; i++)
        add_block(output + i * gs.n + row * gs.h + column * gs.w, gs, rows, columns, groups * outputs,
                  work.sums + (part * p.groups + group) * p.out_channels + o);
      if (l.lone_rows) {
        sum_lone_rows(work, taken, {row, row + rows}, {column, column + columns}, groups, input, output, sums);
        continue;
      }
      if (!l.in_place) {
        pack(l.input, xs, p.h.in, p.w.in, input, groups * p.in_channels, row * p.h.stride - p.h.pad,
             column * p.w.stride - p.w.pad, scratch);
        if (!l.rows_in_place) pack(l.output, gs, p.h.out, p.w.out, output, groups * outputs, row, column, go);
      }
      for (int64_t g = 0; g < groups; g++) {
        PositionBlock s{(l.in_place ? input + column : scratch) + g * p.in_channels * l.input.channel,
                        (l.rows_in_place || l.in_place ? output + row * gs.h + column : go) + g * l.outputs * l.output.channel,
                        rows,
                        columns / kLanes,
                        columns % kLanes,
                        p.h.stride * l.input.row,
                        l.output.row,
                        l.output.channel};
        Real* to = sums + g * outputs * slots;
        const Place at{row * p.h.stride - p.h.pad, column * p.w.stride - p.w.pad};
        int64_t i = 0;
        const auto sum_slots = [&](auto count, auto in_place) GW_LAMBDA {
          each_slots(p, l, s, at, [&](const PositionBlock& block, int64_t n, int64_t some) GW_LAMBDA {
            const int32_t* slot = l.slots.data() + n;
            if (some == 3) return slot_tile<count, 3, in_place>(block, slot, to + i * slots + n, slots);
            slot_tile<count, 1, in_place>(block, slot, to + i * slots + n, slots);
          });
          i += count;
          s.go += count * s.go_channel;
        };
        if (l.in_place) {
          while (i < fours) sum_slots(std::integral_constant<int, 4>{}, std::true_type{});
          // One tap shares no rows, so what is left is a tile of several input channels.
          while (i + 2 <= outputs) sum_slots(std::integral_constant<int, 2>{}, std::true_type{});
          while (i < outputs) sum_slots(std::integral_constant<int, 1>{}, std::true_type{});
        }
        while (i < fours) sum_slots(std::integral_constant<int, 4>{}, std::false_type{});
        for (; i < outputs; i++, s.go += s.go_channel) {
          // Whole columns of the block end with a run, so that tiles of many rows of taps have many rows of outputs.
          const int64_t vectors = ceil_div(columns, kLanes);
          const int64_t run = ceil_div(vectors, ceil_div(vectors, std::max<int64_t>(1, kRun / rows)));
          for (int64_t v = 0; v < vectors; v += run) {
            PositionBlock one = s;
            one.x += v * kLanes;
            one.go += v * kLanes;
            one.vectors = std::min(run, s.vectors - v);
            one.rest = v + run < vectors ? 0 : s.rest;
            const Place place{at.row, at.column + v * kLanes * p.w.stride};
            for (int64_t c = 0; c < p.in_channels; c++, one.x += l.input.channel)
              run_taps(p, l, one, place, rows, to + i * slots + c * taps);
          }
        }
      }
    }
    const bool last = l.parts == 1;
    const WeightStrides& ws = work.weight_strides;
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t i = 0; i < outputs; i++) {
        const Real* from = sums + (g * outputs + i) * slots;
        const int64_t at = (group + g) * p.out_channels + o + i;
        if (!last) {
          copy(parts + (part * p.groups * p.out_channels + at) * slots, from, slots);
          continue;
        }
        Real* to = work.grad_weight + (group + g) * ws.group + (o + i) * ws.o;
        for (int64_t c = 0; c < p.in_channels; c++)
          for (int64_t kh = 0; kh < p.h.kernel; kh++)
            for (int64_t kw = 0; kw < p.w.kernel; kw++) to[c * ws.c + kh * ws.h + kw * ws.w] = *from++;
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
