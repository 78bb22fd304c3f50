// Copies input rows to planes, as pack-inl.h does, for the two kinds of images that most networks begin with: a stride of 4 along
// contiguous rows, and pixels whose few channels are neighbours.
#pragma once
#include "kernels/pack-inl.h"

namespace groupwise::GW_TARGET {

// Deals 4 n floats in turn to four rows.
inline void deal_four(float* const (&to)[4], const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const float* at = from + 4 * i;
    const Pairs low = load_pairs(at), high = load_pairs(at + 2 * kLanes);
    const Pairs even = deal(low.even, high.even), odd = deal(low.odd, high.odd);
    store(to[0] + i, even.even);
    store(to[1] + i, odd.even);
    store(to[2] + i, even.odd);
    store(to[3] + i, odd.odd);
  }
  for (; i < n; i++)
    for (int64_t k = 0; k < 4; k++) to[k][i] = from[4 * i + k];
}

// Deals n groups of `count` floats, at most kLanes, to as many rows.
GW_NOINLINE void deal_groups(float* const* to, int64_t count, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec block[kLanes];
    // A whole load that ends with the last group, or before, is faster than a part of one.
    unroll<kLanes>([&](auto j) GW_LAMBDA {
      const float* at = from + (i + j) * count;
      block[j] = (n - i - j) * count >= kLanes ? load(at) : i + j < n ? load_some(at, count) : Vec{};
    });
    transpose(block);
    unroll<kLanes>([&](auto j) GW_LAMBDA {
      if (j < count) store_some(to[j] + i, block[j], n - i);
    });
  }
}

// Copies as `pack` does. A group is what a stride passes over: the floats of a row from one output's first tap to the next one's.
inline void pack_planes(const Plane& p, const Strides& s, int64_t in_h, int64_t in_w, const float* input, int64_t channels,
                        int64_t row, int64_t column, float* scratch) {
  const int64_t group = channels * p.stride;
  const bool pixels = s.c == 1 && s.w == channels && channels > 1 && group > 3 && group <= kLanes;
  const bool fours = s.w == 1 && p.stride == 4;
  if (!pixels && !fours) return pack(p, s, in_h, in_w, input, channels, row, column, scratch);
  const Span rows = inside(row, in_h, 1, p.rows);
  pad(p, rows, in_w, channels, column, scratch);
  // The places in the rows of the planes that have input in every phase.
  const auto in = [&](int64_t phase) { return inside(column + phase, in_w, p.stride, p.phase); };
  const int64_t first = in(0).first, last = std::max(first, in(p.stride - 1).last);
  for (int64_t r = rows.first; r < rows.last; r++) {
    const float* from = input + (row + r) * s.h + column * s.w;
    const auto place = [&](int64_t c, int64_t phase) { return scratch + c * p.channel + r * p.row + phase * p.phase; };
    if (pixels) {
      float* to[kLanes];
      for (int64_t i = 0; i < group; i++) to[i] = place(i % channels, i / channels) + first;
      deal_groups(to, group, from + first * group, last - first);
    } else {
      for (int64_t c = 0; c < channels; c++) {
        float* const to[4] = {place(c, 0) + first, place(c, 1) + first, place(c, 2) + first, place(c, 3) + first};
        deal_four(to, from + c * s.c + 4 * first, last - first);
      }
    }
    for (int64_t phase = 0; phase < p.stride; phase++) {
      const Span span = in(phase);
      const auto one = [&](int64_t x) {
        for (int64_t c = 0; c < channels; c++) place(c, phase)[x] = from[(x * p.stride + phase) * s.w + c * s.c];
      };
      for (int64_t x = span.first; x < std::min(first, span.last); x++) one(x);
      for (int64_t x = std::max(last, span.first); x < span.last; x++) one(x);
    }
  }
}

}  // namespace groupwise::GW_TARGET
