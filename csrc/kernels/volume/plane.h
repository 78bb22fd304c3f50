// One plane of a 3-D tensor: what is computed and copied for the kernels of 2-D convolutions.
#pragma once

#include "request.h"

namespace groupwise {

// Returns the 2-D request of one plane, which one thread computes.
inline Request plane_of(const Request& r) {
  Request one = r;
  one.dimensions = 2;
  one.depth = {};
  one.problem.batch = 1;
  one.threads = 1;
  one.x_strides.n = one.y_strides.n = 0;
  return one;
}

// Returns the request with so many groups.
inline Request with_groups(Request r, int64_t groups) {
  Problem& p = r.problem;
  p.groups = groups;
  r.x_strides = meaningful(r.x_strides, p.batch, groups * p.in_channels, p.h.in, p.w.in);
  r.y_strides = meaningful(r.y_strides, p.batch, groups * p.out_channels, p.h.out, p.w.out);
  return r;
}

// The sizes of one plane of x or y, and its strides, for all groups of a block.
struct OutputPlane {
  int64_t channels, h, w;
  Strides strides;
  int64_t floats() const { return channels * h * w; }
};

template <class F>
void each_plane_row(const OutputPlane& p, F&& f) {
  // Channels are the innermost where they are neighbours.
  const bool last = p.strides.c == 1 && p.channels > 1;
  const int64_t outer = last ? p.w : p.channels, inner = last ? p.channels : p.w;
  const int64_t step = last ? p.strides.w : p.strides.c, next = last ? 1 : p.strides.w;
  for (int64_t o = 0; o < outer; o++)
    for (int64_t h = 0; h < p.h; h++) f(o, h, o * step + h * p.strides.h, inner, next, last);
}

// Writes the bias, or zeros, to a plane that no tap reaches.
template <class Real>
void fill_plane(const OutputPlane& p, const Real* bias, Real* to) {
  each_plane_row(p, [&](int64_t o, int64_t, int64_t at, int64_t count, int64_t step, bool last) {
    for (int64_t i = 0; i < count; i++) to[at + i * step] = bias ? bias[last ? i : o] : Real{};
  });
}

// Copies a plane to one of other strides.
template <class Real>
void copy_plane(const OutputPlane& p, const Real* from, const Strides& strides, Real* to) {
  each_plane_row(p, [&](int64_t o, int64_t h, int64_t at, int64_t count, int64_t step, bool last) {
    const Real* row = from + o * (last ? strides.w : strides.c) + h * strides.h;
    const int64_t next = last ? strides.c : strides.w;
    for (int64_t i = 0; i < count; i++) to[at + i * step] = row[i * next];
  });
}

}  // namespace groupwise
