// Which layers the narrow kernel computes by sums, or gradients, that slide along the rows: those of 3x3 taps of one channel, and
// the weight's gradient of longer rows of taps.
#pragma once

#include "problem.h"

namespace groupwise {

// The most rows of outputs that slide together: their sums, the weights and an input fit the registers.
constexpr int64_t slide_rows(int64_t lanes) { return lanes >= 16 ? 4 : lanes >= 8 ? 2 : 1; }

// One axis of a layer: its taps, the stride of its outputs and the spacing of its taps.
struct SlideAxis {
  int64_t taps, stride, spacing;
};

// Tells whether the sums, or the outputs of a weight's gradient, of three neighbouring columns can slide.
inline bool may_slide(const SlideAxis& h, const SlideAxis& w, int64_t in_channels, int64_t out_channels, int64_t lanes) {
  if (in_channels != 1 || out_channels >= lanes || h.taps != 3 || w.taps != 3 || h.stride != w.stride) return false;
  return h.stride == 1 || (h.stride == 2 && h.spacing == 1 && w.spacing == 1);
}

// Tells whether the sums of three neighbouring columns slide. Vectors of half a cache line leave the other half for later, so
// the turns of a dilation would read twice what lies beyond the L2 cache (`far`; 256 channels 56x56: 0.33 ms instead of 0.25).
inline bool slides(const CorrelationShape& c, int64_t lanes, bool far) {
  if (c.w.size() != 1) return false;
  const Phase &h = c.h, &w = c.w[0];
  if (far && lanes < 16 && (h.spacing > 1 || w.spacing > 1)) return false;
  return may_slide({h.taps, h.stride, h.spacing}, {w.taps, w.stride, w.spacing}, c.in_channels, c.out_channels, lanes);
}

// Tells whether both phases of a width with a stride of two slide together.
inline bool slides_in_phases(const CorrelationShape& c) {
  if (c.in_channels != 1 || c.out_channels != 1 || c.w.size() != 2) return false;
  const Phase &h = c.h, &a = c.w[0], &b = c.w[1];
  return h.stride == 1 && h.spacing == 1 && (h.taps == 1 || h.taps == 2) && a.stride == 1 && a.spacing == 1 && b.spacing == 1 &&
         a.taps * b.taps == 2;
}

// The fewest taps of a row past which the gradients of a row of outputs slide, and the most that they slide past together.
constexpr int kLeastRowTaps = 4, kMostRowTaps = 7;

// Tells whether a weight's gradient of such rows can be summed by them. Each turn of a dilation would end a run of sums, as in
// 3x3 taps. (Several outputs a channel keep tiles, since each more instance takes seconds to compile.)
inline bool may_slide_past_rows(const Problem& p) {
  return depthwise(p) && p.w.kernel >= kLeastRowTaps && p.w.stride <= 2 && p.w.dilation == 1;
}

}  // namespace groupwise
