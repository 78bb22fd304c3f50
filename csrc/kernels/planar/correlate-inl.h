// Correlation with vectors along the width. An input vector is loaded once and feeds every accumulator it can: several
// output channels of a group, or, where a group has few, several output rows. On AVX2, 4 x 3 accumulators, 3 inputs and a
// broadcast weight fill the 16 registers, and 3 unaligned loads + 4 broadcasts for 12 FMAs stay under the two loads a cycle.
#pragma once
#include "kernels/pack-inl.h"
#include "kernels/planar/lone_phases-inl.h"
#include "kernels/planar/lone_rows-inl.h"
#include "kernels/planar/task-inl.h"
#include "kernels/planar/line-inl.h"
#include "kernels/planar/single-inl.h"
#include "kernels/planar/whole-inl.h"
#include "kernels/planar/woven-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// Computes OC output channels by NV vectors, which are `vector` floats apart: neighbours in a row, or rows of one column. KW is
// the number of taps in a row if it is known when this compiles, else 0.
template <int OC, int NV, int KW>
GW_NOINLINE void channel_tile(const Taps& t, const Real* x, int64_t vector, const Real* w, const Real* bias, const Target& to) {
  Vec sum[OC][NV];
  unroll<OC>([&](auto o) GW_LAMBDA {
    const Vec start = bias ? broadcast(bias[o]) : Vec{};
    unroll<NV>([&](auto v) GW_LAMBDA { sum[o][v] = start; });
  });
  // Where the number of taps is known, each tap's offset is a variable, which saves a load and an addition a vector.
  int64_t column[KW > 0 ? KW : 1];
  if constexpr (KW > 0) unroll<KW>([&](auto kw) GW_LAMBDA { column[kw] = t.column[kw]; });
  const int64_t x_row = t.x_row, w_row = t.w_row, w_column = t.w_column, w_output = t.w_output;
  const Real* x_channel = x;
  const Real* w_channel = w;
  for (int64_t c = t.channels; c > 0; c--, x_channel += t.x_channel, w_channel += t.w_channel) {
    const Real* row = x_channel;
    const Real* w_first = w_channel;
    for (int64_t kh = t.rows; kh > 0; kh--, row += x_row, w_first += w_row) {
      const Real* weight = w_first;
      each<KW>(t.columns, [&](auto kw) GW_LAMBDA {
        const Real* at;
        if constexpr (KW > 0) {
          at = row + column[kw];
        } else {
          at = row + t.column[kw];
        }
        Vec in[NV];
        unroll<NV>([&](auto v) GW_LAMBDA {
          in[v] = load(at + v * vector);
          pin(in[v]);
        });
        unroll<OC>([&](auto o) GW_LAMBDA {
          const Vec factor = broadcast(weight[o * w_output]);
          unroll<NV>([&](auto v) GW_LAMBDA { add_product(sum[o][v], in[v], factor); });
        });
        weight += w_column;
      });
    }
  }
  unroll<OC>([&](auto o) GW_LAMBDA {
    unroll<NV>([&](auto v)
                   GW_LAMBDA { put(to.y + o * to.output + v * to.vector, sum[o][v], to.columns - v * to.narrower, to.add); });
  });
}

// Computes R output rows by NV vectors, `vector` floats apart, of one channel; stores only the first `stored` rows.
template <int R, int NV, int KW>
GW_INLINE void row_tile(const Taps& t, const RowSharing& s, int64_t spacing, int64_t row_floats, const Real* x, int64_t vector,
                        const Real* w, const Real* bias, const Target& to, int64_t stored) {
  Vec sum[R][NV];
  const Vec start = bias ? broadcast(*bias) : Vec{};
  unroll<R>([&](auto r) GW_LAMBDA { unroll<NV>([&](auto v) GW_LAMBDA { sum[r][v] = start; }); });
  for (int64_t c = 0; c < t.channels; c++) {
    for (int64_t residue = 0; residue < s.residues; residue++) {
      const Real* first = x + c * t.x_channel + residue * spacing * row_floats;
      const Real* weights = w + c * t.w_channel + residue * t.w_row;
      const int64_t rows = residue < t.rows ? (t.rows - residue - 1) / s.residues + 1 : 0;
      const int64_t w_row = s.residues * t.w_row;
      // Adds one tap of input row i to the outputs r of [LO, HI), for which i - r is a row of the kernel.
      const auto tap = [&]<int LO, int HI>(int64_t i, int64_t kw) GW_LAMBDA {
        const Real* at = first + i * s.pitch * row_floats + t.column[kw];
        const Real* weight = weights + i * w_row + kw * t.w_column;
        Vec in[NV];
        unroll<NV>([&](auto v) GW_LAMBDA {
          in[v] = load(at + v * vector);
          pin(in[v]);
        });
        unroll<HI - LO>([&](auto n) GW_LAMBDA {
          constexpr int r = LO + n;
          const Vec factor = broadcast(weight[-r * w_row]);
          unroll<NV>([&](auto v) GW_LAMBDA { add_product(sum[r][v], in[v], factor); });
        });
      };
      if (rows >= R - 1) {
        // The first rows and the last meet few outputs, and different ones. Together they keep the FMA units busy; one after
        // the other they would wait for their own sums (3x3: 72 % of peak at best, 95 % together).
        unroll<R - 1>([&](auto i) GW_LAMBDA {
          each<KW>(t.columns, [&](int64_t kw) GW_LAMBDA {
            tap.template operator()<0, i + 1>(i, kw);
            tap.template operator()<R - 1 - i, R>(rows + R - 2 - i, kw);
          });
        });
        for (int64_t i = R - 1; i < rows; i++)
          each<KW>(t.columns, [&](int64_t kw) GW_LAMBDA { tap.template operator()<0, R>(i, kw); });
      } else {
        for (int64_t i = 0; i < rows; i++)
          each<KW>(t.columns, [&](int64_t kw) GW_LAMBDA {
            unroll<R>([&](auto r) GW_LAMBDA { tap.template operator()<r, r + 1>(i + r, kw); });
          });
      }
    }
  }
  unroll<R>([&](auto r) GW_LAMBDA {
    if (r >= stored) return;
    unroll<NV>([&](auto v)
                   GW_LAMBDA { put(to.y + r * to.output + v * to.vector, sum[r][v], to.columns - v * to.narrower, to.add); });
  });
}

template <int NV>
GW_INLINE void channel_rows(const PlanarTask& p, int64_t o, int64_t first_row, int64_t x, int64_t vector, const Target& shape) {
  const Real* in = p.x + first_row * p.stride * p.row_floats + x;
  const Real* w = p.w + o * p.taps.w_output;
  const Real* bias = p.bias ? p.bias + o : nullptr;
  Target to = shape;
  to.y = p.y + o * p.y_channel + first_row * p.y_row + x;
  if (p.taps.columns == 3) return channel_tile<4, NV, 3>(p.taps, in, vector, w, bias, to);
  if (p.taps.columns == 1 && p.taps.rows == 1) {
    // The channels of a 1x1 kernel are taken as its rows, which saves a loop.
    Taps t = p.taps;
    t.rows = t.channels;
    t.x_row = t.x_channel;
    t.w_row = t.w_channel;
    t.channels = 1;
    return channel_tile<4, NV, 1>(t, in, vector, w, bias, to);
  }
  channel_tile<4, NV, 0>(p.taps, in, vector, w, bias, to);
}

// Returns how many of `left` vectors or rows the next tile computes: three, or two of four, as one starves the FMA units.
GW_INLINE int64_t next(int64_t left) { return left >= 3 && left != 4 ? 3 : left >= 2 ? 2 : 1; }

// Computes `outputs` channels in fours, by vectors of one row or of neighbouring rows, whichever fills threes.
inline void run_channels(const PlanarTask& p, int64_t outputs) {
  const int64_t vectors = ceil_div(p.columns, kLanes);
  const bool along_rows = vectors % 3 == 0 || vectors > 8 || (p.rows < 3 && vectors >= p.rows);
  // Each three vectors of a tensor serve all outputs while they are in the L1 cache.
  const int64_t together = p.in_place ? outputs : 4;
  for (int64_t first = 0; first < outputs; first += together) {
    for (int64_t r = 0, rows; r < p.rows; r += rows) {
      rows = along_rows ? 1 : next(p.rows - r);
      for (int64_t v = 0, taken; v < vectors; v += taken) {
        taken = along_rows ? next(vectors - v) : 1;
        const Bundle b = bundle(p, v * kLanes, taken);
        const int64_t vector = along_rows ? b.vector : p.stride * p.row_floats;
        const Target to{nullptr, p.y_channel, along_rows ? b.vector : p.y_row, b.columns, along_rows ? kLanes : 0, p.add};
        for (int64_t next_four = first; next_four < first + together; next_four += 4) {
          // The last four start early rather than end late.
          const int64_t o = std::min(next_four, outputs - 4);
          switch (rows * taken) {
            case 3: channel_rows<3>(p, o, r, b.x, vector, to); break;
            case 2: channel_rows<2>(p, o, r, b.x, vector, to); break;
            default: channel_rows<1>(p, o, r, b.x, vector, to);
          }
        }
      }
    }
  }
}

template <int R, int NV>
GW_INLINE void row_vectors(const PlanarTask& p, int64_t o, int64_t row, const Bundle& b, int64_t stored) {
  const Real* in = p.x + row * p.stride * p.row_floats + b.x;
  const Real* w = p.w + o * p.taps.w_output;
  const Real* bias = p.bias ? p.bias + o : nullptr;
  const Target to{p.y + o * p.y_channel + row * p.y_row + b.x, p.sharing.apart * p.y_row, b.vector, b.columns, kLanes, p.add};
  if (p.taps.columns == 3)
    return row_tile<R, NV, 3>(p.taps, p.sharing, p.spacing, p.row_floats, in, b.vector, w, bias, to, stored);
  row_tile<R, NV, 0>(p.taps, p.sharing, p.spacing, p.row_floats, in, b.vector, w, bias, to, stored);
}

template <int R>
void some_rows(const PlanarTask& p, int64_t o, int64_t row, int64_t stored) {
  const int64_t vectors = ceil_div(p.columns, kLanes);
  for (int64_t v = 0, taken; v < vectors; v += taken) {
    taken = next(vectors - v);
    const Bundle b = bundle(p, v * kLanes, taken);
    switch (taken) {
      case 3: row_vectors<R, 3>(p, o, row, b, stored); break;
      case 2: row_vectors<R, 2>(p, o, row, b, stored); break;
      default: row_vectors<R, 1>(p, o, row, b, stored);
    }
  }
}

// Computes output channels [from, outputs) one at a time. A tile of four rows also computes three: the scratch has room.
inline void run_rows(const PlanarTask& p, int64_t from) {
  const int64_t apart = p.sharing.apart;
  if (p.single) return run_single(p, from);
  for (int64_t o = from; o < p.outputs; o++) {
    for (int64_t start = 0; start < std::min(apart, p.rows); start++) {
      const int64_t count = (p.rows - start - 1) / apart + 1;
      for (int64_t j = 0; j < count; j += kRowTile) {
        const int64_t left = count - j, row = start + j * apart;
        if (left > 2) {
          some_rows<kRowTile>(p, o, row, left);
        } else if (left == 2) {
          some_rows<2>(p, o, row, left);
        } else {
          run_line(p, o, row);
        }
      }
    }
  }
}

// Runs tasks [begin, end) of a correlation: packs the input, computes every group and phase of the block, and unpacks.
void correlate_planar(const Correlation& c, const CorrelationLayout& l, int64_t begin, int64_t end, Real* scratch) {
  if (l.whole != Whole::no) return run_whole(c, l, begin, end);
  const Block& b = l.block;
  const Plane& plane = l.plane;
  const WeightStrides& ws = c.weight_strides;
  Real* stage = scratch + l.input_floats;
  if (plane.wide) zero(scratch, l.input_floats);
  const int64_t by_w = ceil_div(c.w.front().out, b.columns), by_h = ceil_div(c.h.out, b.rows);
  const int64_t by_g = ceil_div(c.groups, b.groups), fours = c.out_channels / 4 * 4, step = c.w.front().step;
  int64_t out_w = 0;
  for (const Phase& w : c.w) out_w += w.out;
  PlanarTask p;
  p.outputs = c.out_channels;
  p.row_floats = plane.row;
  p.stride = c.h.stride;
  p.spacing = c.h.spacing;
  p.sharing = l.sharing;
  p.in_place = l.in_place;
  p.y_channel = l.staged ? l.stage.channel : c.output_strides.c;
  p.y_row = l.staged ? l.stage.row : c.output_strides.h * c.h.step;
  for (int64_t task = begin; task < end; task++) {
    const int64_t column = task % by_w * b.columns, row = task / by_w % by_h * b.rows;
    const int64_t group = task / (by_w * by_h) % by_g * b.groups, n = task / (by_w * by_h * by_g);
    const int64_t groups = std::min(b.groups, c.groups - group), rows = std::min(b.rows, c.h.out - row);
    const int64_t margin = (std::min(l.strip.rows, b.rows) - 1) * c.h.stride;
    const int64_t low = std::max(row * c.h.stride + c.h.low, -margin);
    const Real* input = c.input + n * c.input_strides.n + group * c.in_channels * c.input_strides.c;
    if (!l.in_place && !l.lone_rows)
      pack(plane, c.input_strides, c.h.in, c.w.front().in, input, groups * c.in_channels, low,
           column * plane.stride + plane.low_w, scratch);
    Real* output = c.output + n * c.output_strides.n + group * c.out_channels * c.output_strides.c;
    const auto finish_task = [&] {
      finish_block(c, {n, group * c.out_channels, groups * c.out_channels, row, rows, column * step,
                       std::min(b.columns * step, out_w - column * step)});
    };
    if (l.lone_rows) {
      const auto run = c.w.size() > 1 ? run_lone_phases : run_lone_rows;
      run(c, b, groups, row, rows, column, group, input, output);
      finish_task();
      continue;
    }
    if (l.woven) {
      run_woven(c, l, {row, column, rows, group, groups, low}, scratch, output);
      finish_task();
      continue;
    }
    // Computes a strip of rows from r on, and of columns of a phase from x on, in all groups of the block.
    const auto run_strip = [&](const Phase& h, const Phase& w, int64_t r, int64_t height, int64_t x, int64_t columns) {
      const int64_t taps = h.taps * w.taps, run = run_of_channels(c, taps);
      // A longer row of taps is summed in even parts, which round less.
      const int64_t part = w.taps > kLongestRow ? ceil_div(w.taps, ceil_div(w.taps, kLongestRow)) : w.taps;
      const size_t i = static_cast<size_t>(w.first - c.w.front().first);
      const Real* from = l.in_place ? input + plane.low_w + column : scratch;
      p.rows = height;
      // Staged rows have room for whole vectors.
      p.columns = l.staged ? round_up(columns, kLanes) : columns;
      if (taps > 0) from += ((row + r) * h.stride + h.low - (l.in_place ? 0 : low)) * plane.row + x;
      p.taps = {c.in_channels,
                h.taps,
                w.taps,
                l.columns[i].data() + (w.index != c.w[i].index ? (w.index - c.w[i].index) / w.index_step : 0),
                plane.channel,
                h.spacing * plane.row,
                ws.c,
                h.index_step * ws.h,
                w.index_step * ws.w,
                ws.o};
      p.single = takes_single(c, h, w, p.rows);
      for (int64_t g = 0; g < groups; g++) {
        p.bias = c.bias ? c.bias + (group + g) * c.out_channels : nullptr;
        p.y = l.staged ? stage + static_cast<int64_t>(i) * l.stage.phase
                       : output + h.first * c.output_strides.h + row * p.y_row + column;
        p.y += g * c.out_channels * p.y_channel + r * p.y_row + x;
        for (int64_t channel = 0; channel < c.in_channels; channel += run, p.bias = nullptr) {
          p.taps.channels = std::min(run, c.in_channels - channel);
          p.x = from + (g * c.in_channels + channel) * plane.channel;
          p.w = c.weight + (group + g) * ws.group + channel * ws.c + h.index * ws.h + w.index * ws.w;
          p.add = channel > 0;
          if (p.single && prefers_single(c, h)) {
            run_single(p, 0);
            continue;
          }
          if (part == w.taps || p.single) {
            // Two or three channels that are left share no rows in an image of few, and are a tile with others. Sums that are
            // added to must not be computed twice.
            const int64_t left = c.out_channels - fours, tiled = fours && left > 1 && height < kRowTile && run == c.in_channels;
            const int64_t by_channels = tiled ? c.out_channels : fours;
            if (fours) run_channels(p, by_channels);
            run_rows(p, by_channels);
            continue;
          }
          const Taps all = p.taps;
          for (int64_t tap = 0; tap < w.taps; tap += part, p.bias = nullptr, p.add = true) {
            p.taps.columns = std::min(part, w.taps - tap);
            if (fours) run_channels(p, fours);
            run_rows(p, fours);
            p.w += p.taps.columns * w.index_step * ws.w;
            p.taps.column += p.taps.columns;
          }
          p.taps = all;
        }
      }
    };
    each_strip(c, b, l.strip, row, column, run_strip);
    if (l.staged) unpack(c, l, stage, groups * c.out_channels, row, column, rows, output);
    finish_task();
  }
}

}  // namespace groupwise::GW_TARGET
