// Copies between tensors and scratch. Only this file knows of layout, stride and padding.
#pragma once
#include "kernels/finish.h"
#include "kernels/planar/layout.h"
#include "kernels/typed.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

GW_INLINE void zero(Real* to, int64_t n) {
  Vec none{};
  pin(none);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, none);
  for (; i + 4 <= n; i += 4) store_four(to + i, Four{});
  for (; i < n; i++) {
    to[i] = 0.0f;
    // Without this GCC calls memset for the few floats by which most rows are padded.
    asm volatile("" ::: "memory");
  }
}

// Copies to[i] = from[i * step]. A step of 2, the common stride, has vectors of its own.
GW_INLINE void copy_every(Real* to, const Real* from, int64_t step, int64_t n) {
  if (step == 1) return copy(to, from, n);
  const auto one = [&](int64_t i) GW_LAMBDA { to[i] = from[i * step]; };
  if (step == 2 && kMasks && n < kLanes) return store_some(to, load_pairs_some(from, 2 * n - 1).even, n);
  if (step == 2)
    return in_vectors(
        n, [&](int64_t i) GW_LAMBDA { store(to + i, load_even(from + 2 * i)); },
        [&](int64_t i) GW_LAMBDA { store_four(to + i, load_even_four(from + 2 * i)); }, one);
  for (int64_t i = 0; i < n; i++) one(i);
}

// Deals n floats in turn to two rows.
GW_INLINE void deal(Real* even, Real* odd, const Real* from, int64_t n) {
  if (kMasks && n < 2 * kLanes) {
    const Pairs p = load_pairs_some(from, n);
    store_some(even, p.even, (n + 1) / 2);
    store_some(odd, p.odd, n / 2);
    return;
  }
  in_vectors(
      n / 2,
      [&](int64_t i) GW_LAMBDA {
        const Pairs p = load_pairs(from + 2 * i);
        store(even + i, p.even);
        store(odd + i, p.odd);
      },
      [&](int64_t i) GW_LAMBDA {
        store_four(even + i, load_even_four(from + 2 * i));
        store_four(odd + i, load_even_four(from + 2 * i + 1));
      },
      [&](int64_t i) GW_LAMBDA { even[i] = from[2 * i], odd[i] = from[2 * i + 1]; });
  if (n % 2) even[n / 2] = from[n - 1];
}

GW_NOINLINE void deal_rows(Real* even, Real* odd, int64_t to_row, const Real* from, int64_t from_row, int64_t n, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) deal(even + r * to_row, odd + r * to_row, from + r * from_row, n);
}

// Copies rows of n floats that are `step` apart in the source.
GW_NOINLINE void copy_rows(Real* to, int64_t to_row, const Real* from, int64_t from_row, int64_t step, int64_t n,
                           int64_t rows) {
  for (int64_t r = 0; r < rows; r++) copy_every(to + r * to_row, from + r * from_row, step, n);
}

// Copies n pixels of `channels` neighbouring channels (at most kLanes), `pixel` floats apart, to one row of each channel.
GW_NOINLINE void split_pixels(Real* to, int64_t channel, const Real* from, int64_t pixel, int64_t channels, int64_t n) {
  for (int64_t next = 0; next < n; next += kLanes) {
    // The last vector starts early rather than end late.
    const int64_t i = std::max<int64_t>(0, std::min(next, n - kLanes));
    Vec block[kLanes];
    if (channels == kLanes && n - i >= kLanes) {
      unroll<kLanes>([&](auto j) GW_LAMBDA { block[j] = load(from + (i + j) * pixel); });
      transpose(block);
      unroll<kLanes>([&](auto j) GW_LAMBDA { store(to + j * channel + i, block[j]); });
    } else {
      unroll<kLanes>([&](auto j) GW_LAMBDA { block[j] = i + j < n ? load_some(from + (i + j) * pixel, channels) : Vec{}; });
      transpose(block);
      unroll<kLanes>([&](auto j) GW_LAMBDA {
        if (j < channels) store_some(to + j * channel + i, block[j], n - i);
      });
    }
  }
}

// Packs one tap of `outputs` output channels as [input channel][width]. It reads along whatever is contiguous in the weight.
GW_INLINE void pack_tap(Real* to, int64_t width, const Real* from, const WeightStrides& s, int64_t in_channels,
                        int64_t outputs) {
  if (s.o == 1) {
    for (int64_t i = 0; i < in_channels; i++) copy(to + i * width, from + i * s.c, outputs);
  } else if (s.c == 1) {
    for (int64_t i = 0; i < in_channels; i += kLanes)
      split_pixels(to + i * width, width, from + i, s.o, std::min<int64_t>(kLanes, in_channels - i), outputs);
  } else {
    for (int64_t i = 0; i < in_channels; i++)
      for (int64_t o = 0; o < outputs; o++) to[i * width + o] = from[i * s.c + o * s.o];
  }
}

// Copies one row of each channel to pixels: the inverse of split_pixels.
GW_NOINLINE void join_pixels(Real* to, int64_t pixel, const Real* from, int64_t channel, int64_t channels, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec block[kLanes];
    // Rows of scratch are a whole number of vectors long.
    unroll<kLanes>([&](auto j) GW_LAMBDA { block[j] = j < channels ? load(from + j * channel + i) : Vec{}; });
    transpose(block);
    unroll<kLanes>([&](auto j) GW_LAMBDA {
      if (i + j < n) store_some(to + (i + j) * pixel, block[j], channels);
    });
  }
}

// Calls f(first, count) for every kLanes of n channels, the last of which start early rather than end late where they can.
template <class F>
GW_INLINE void each_channels(int64_t n, F&& f) {
  for (int64_t c = 0; c < n; c += kLanes) f(std::max<int64_t>(0, std::min(c, n - kLanes)), std::min<int64_t>(kLanes, n));
}

// The part [first, last) of a row of scratch that holds input; its columns are x, x + stride, ... of the padded image.
struct Span {
  int64_t first, last;
};
GW_INLINE Span inside(int64_t x, int64_t in, int64_t stride, int64_t length) {
  const int64_t first = x >= 0 ? 0 : ceil_div(-x, stride);
  const int64_t last = x >= in ? 0 : std::min(length, ceil_div(in - x, stride));
  return {std::min(first, length), std::max(std::min(first, length), last)};
}

// Zeros what the rows of a block read beyond the input, except for what was zeroed once and stays so.
inline void pad(const Plane& p, const Span& rows, int64_t in_w, int64_t channels, int64_t column, Real* scratch) {
  if (p.whole) return;
  for (int64_t c = 0; c < channels; c++) {
    Real* plane = scratch + c * p.channel;
    zero(plane, rows.first * p.row);
    zero(plane + rows.last * p.row, (p.rows - rows.last) * p.row);
    if (p.wide) continue;
    for (int64_t phase = 0; phase < p.stride; phase++) {
      const Span in = inside(column + phase, in_w, p.stride, p.phase);
      for (int64_t r = rows.first; r < rows.last; r++) {
        Real* start = plane + r * p.row + phase * p.phase;
        zero(start, in.first);
        if (in.last < p.padded) zero(start + in.last, p.padded - in.last);
      }
    }
  }
}

// Deals `count` rows of each channel to the phases of a stride. Phases are copied as neighbouring channels are, where they all
// have the column.
inline void deal_phases(const Plane& p, const Strides& s, int64_t in_w, const Real* input, int64_t channels, int64_t column,
                        int64_t count, Real* scratch) {
  for (int64_t phase = 0; phase < p.stride; phase += kLanes) {
    const int64_t phases = std::min<int64_t>(kLanes, p.stride - phase);
    const int64_t first = inside(column + phase, in_w, p.stride, p.phase).first;
    const int64_t last = std::max(first, inside(column + phase + phases - 1, in_w, p.stride, p.phase).last);
    Span in[kLanes];
    for (int64_t i = 0; i < phases; i++) in[i] = inside(column + phase + i, in_w, p.stride, p.phase);
    for (int64_t c = 0; c < channels; c++) {
      for (int64_t r = 0; r < count; r++) {
        const Real* from = input + c * s.c + r * s.h + column + phase;
        Real* to = scratch + c * p.channel + r * p.row + phase * p.phase;
        if (last > first) split_pixels(to + first, p.phase, from + first * p.stride, p.stride, phases, last - first);
        for (int64_t i = 0; i < phases; i++) {
          for (int64_t x = in[i].first; x < std::min(first, in[i].last); x++) to[i * p.phase + x] = from[x * p.stride + i];
          for (int64_t x = std::max(last, in[i].first); x < in[i].last; x++) to[i * p.phase + x] = from[x * p.stride + i];
        }
      }
    }
  }
}

// Copies input rows from `row` and columns from `column` on (both may lie in the padding) of `channels` channels.
inline void pack(const Plane& p, const Strides& s, int64_t in_h, int64_t in_w, const Real* input, int64_t channels, int64_t row,
                 int64_t column, Real* scratch) {
  const Span rows = inside(row, in_h, 1, p.rows);
  const int64_t count = rows.last - rows.first;
  pad(p, rows, in_w, channels, column, scratch);
  input += (row + rows.first) * s.h;
  scratch += rows.first * p.row;
  if (p.stride == 2 && s.w == 1) {
    const Span in = inside(column, in_w, 1, 2 * p.phase);
    const auto place = [&](int64_t x) { return x % 2 * p.phase + x / 2; };
    for (int64_t c = 0; c < channels; c++)
      deal_rows(scratch + c * p.channel + place(in.first), scratch + c * p.channel + place(in.first + 1), p.row,
                input + c * s.c + column + in.first, s.h, in.last - in.first, count);
    return;
  }
  if (p.stride >= kLanes && s.w == 1) return deal_phases(p, s, in_w, input, channels, column, count, scratch);
  // Few channels that are neighbours take no vectors.
  const bool split = s.w != 1 && s.c == 1 && channels >= 4;
  for (int64_t phase = 0; phase < p.stride; phase++) {
    const int64_t x = column + phase;
    const Span in = inside(x, in_w, p.stride, p.phase);
    const int64_t n = in.last - in.first;
    if (n <= 0) continue;
    const Real* from = input + (x + in.first * p.stride) * s.w;
    Real* to = scratch + phase * p.phase + in.first;
    if (split) {
      for (int64_t r = 0; r < count; r++)
        each_channels(channels, [&](int64_t c, int64_t some) GW_LAMBDA {
          split_pixels(to + c * p.channel + r * p.row, p.channel, from + c + r * s.h, p.stride * s.w, some, n);
        });
    } else {
      for (int64_t c = 0; c < channels; c++)
        copy_rows(to + c * p.channel, p.row, from + c * s.c, s.h, p.stride * s.w, n, count);
    }
  }
}

// Copies rows from `row` and columns from `column` on, of `channels` channels, to [row][column][p.width]. Zeros what lies
// outside the input, and the channels that fill the width.
inline void pack_pixels(const Pixels& p, const Strides& s, int64_t in_h, int64_t in_w, const Real* input, int64_t channels,
                        int64_t row, int64_t column, Real* scratch) {
  const Span in = inside(column, in_w, 1, p.columns);
  for (int64_t r = 0; r < p.rows; r++) {
    Real* to = scratch + r * p.columns * p.width;
    if (row + r < 0 || row + r >= in_h) {
      zero(to, p.columns * p.width);
      continue;
    }
    zero(to, in.first * p.width);
    zero(to + in.last * p.width, (p.columns - in.last) * p.width);
    const Real* from = input + (row + r) * s.h + (column + in.first) * s.w;
    to += in.first * p.width;
    if (s.c == 1 && s.w != 1) {
      const int64_t whole = channels / kLanes * kLanes;
      for (int64_t x = in.first; x < in.last; x++, from += s.w, to += p.width) {
        for (int64_t c = 0; c < whole; c += kLanes) store(to + c, load(from + c));
        for (int64_t c = whole; c < p.width; c += kLanes)
          store(to + c, load_some(from + c, std::clamp<int64_t>(channels - c, 0, kLanes)));
      }
      continue;
    }
    for (int64_t c = 0; c < p.width; c += kLanes) {
      const int64_t lanes = std::clamp<int64_t>(channels - c, 0, kLanes);
      for (int64_t x = 0; x < in.last - in.first; x += kLanes) {
        const int64_t n = std::min<int64_t>(kLanes, in.last - in.first - x);
        Vec block[kLanes];
        unroll<kLanes>([&](auto j) GW_LAMBDA { block[j] = j < lanes ? load_some(from + (c + j) * s.c + x, n) : Vec{}; });
        transpose(block);
        unroll<kLanes>([&](auto j) GW_LAMBDA {
          if (j < n) store(to + (x + j) * p.width + c, block[j]);
        });
      }
    }
  }
}

// Interleaves two rows, a0 b0 a1 b1 ..., the first of which may have one float more.
GW_NOINLINE void interleave(Real* to, const Real* a, const Real* b, int64_t of_a, int64_t of_b) {
  if (kMasks && of_b < kLanes && of_a <= kLanes) {
    const Vec x = load_some(a, of_a), y = load_some(b, of_b);
    store_some(to, interleave_low(x, y), of_a + of_b);
    if (of_a + of_b > kLanes) store_some(to + kLanes, interleave_high(x, y), of_a + of_b - kLanes);
    return;
  }
  in_vectors(
      of_b,
      [&](int64_t i) GW_LAMBDA {
        const Vec x = load(a + i), y = load(b + i);
        store(to + 2 * i, interleave_low(x, y));
        store(to + 2 * i + kLanes, interleave_high(x, y));
      },
      [&](int64_t i) GW_LAMBDA {
        const Four x = load_four(a + i), y = load_four(b + i);
        store_four(to + 2 * i, __builtin_shufflevector(x, y, 0, 4, 1, 5));
        store_four(to + 2 * i + 4, __builtin_shufflevector(x, y, 2, 6, 3, 7));
      },
      [&](int64_t i) GW_LAMBDA { to[2 * i] = a[i], to[2 * i + 1] = b[i]; });
  if (of_a > of_b) to[2 * of_b] = a[of_b];
}

// Copies the staged outputs of `channels` channels to the tensor, rows from `row` and columns from `column` on.
inline void unpack(const Correlation& c, const CorrelationLayout& l, const Real* stage, int64_t channels, int64_t row,
                   int64_t column, int64_t rows, Real* output) {
  const Strides& s = c.output_strides;
  const bool join = s.w != 1 && s.c == 1;
  const int64_t step = c.w.front().step;
  for (int64_t r = 0; r < rows; r++) {
    Real* to_row = output + (c.h.first + (row + r) * c.h.step) * s.h;
    const auto count = [&](size_t i) { return std::min(l.block.columns, c.w[i].out - column); };
    if (!join && c.w.size() == 2 && s.w == 1 && step == 2) {
      for (int64_t o = 0; o < channels; o++) {
        const Real* from = stage + o * l.stage.channel + r * l.stage.row;
        interleave(to_row + o * s.c + 2 * column, from, from + l.stage.phase, count(0), count(1));
      }
      continue;
    }
    for (size_t i = 0; i < c.w.size(); i++) {
      const int64_t n = count(i);
      const Real* from = stage + r * l.stage.row + static_cast<int64_t>(i) * l.stage.phase;
      Real* to = to_row + (c.w[i].first + column * step) * s.w;
      if (join) {
        each_channels(channels, [&](int64_t o, int64_t some) GW_LAMBDA {
          join_pixels(to + o, step * s.w, from + o * l.stage.channel, l.stage.channel, some, n);
        });
      } else {
        for (int64_t o = 0; o < channels; o++)
          for (int64_t x = 0; x < n; x++) to[o * s.c + x * step * s.w] = from[o * l.stage.channel + x];
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
