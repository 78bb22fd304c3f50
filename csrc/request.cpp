#include "request.h"

#include <algorithm>

#include "kernels/layout.h"

namespace groupwise {
namespace {

// Calls f with every number of a request, in an order that never changes: kept measurements name requests by it.
template <class F>
void each_number(const Request& r, F&& f) {
  const Problem& p = r.problem;
  for (const int64_t n : {static_cast<int64_t>(r.direction), p.batch, p.groups, p.in_channels, p.out_channels}) f(n);
  for (const Axis& a : {p.h, p.w})
    for (const int64_t n : {a.in, a.out, a.kernel, a.stride, a.pad, a.dilation}) f(n);
  f(r.channels_last);
  f(static_cast<int64_t>(r.dtype));
  f(r.transposed + r.biased);
  f(r.threads);
  f(r.dimensions);
  for (const Strides& s : {r.x_strides, r.y_strides})
    for (const int64_t n : {s.n, s.c, s.h, s.w}) f(n);
  const WeightStrides& w = r.w_strides;
  for (const int64_t n : {w.group, w.o, w.c, w.h, w.w}) f(n);
  if (r.dimensions < 3) return;
  const Axis& a = r.depth.axis;
  for (const int64_t n : {a.in, a.out, a.kernel, a.stride, a.pad, a.dilation, r.depth.x, r.depth.y, r.depth.w}) f(n);
}

std::vector<Phase> phases(const Request& r, const Axis& axis) {
  if (r.direction == Direction::grad_input) return grad_input_phases(axis);
  return {forward_phase(axis)};
}

}  // namespace

std::string key_of(const Request& r) {
  std::string key;
  each_number(r, [&](int64_t n) { key += (key.empty() ? "" : " ") + std::to_string(n); });
  return key;
}

size_t RequestHash::operator()(const Request& r) const {
  uint64_t hash = reinterpret_cast<uintptr_t>(r.target);
  each_number(r, [&](int64_t n) {
    hash = (hash ^ static_cast<uint64_t>(n)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  });
  return hash;
}

int64_t numbers_of(const Problem& p) {
  const int64_t images = p.batch * p.groups * (p.in_channels * p.h.in * p.w.in + p.out_channels * p.h.out * p.w.out);
  return images + p.groups * p.in_channels * p.out_channels * p.h.kernel * p.w.kernel;
}

int64_t products_of(const Problem& p) {
  return p.batch * p.groups * p.in_channels * p.out_channels * p.h.kernel * p.w.kernel * p.h.out * p.w.out;
}

int64_t products_of(const Request& r) { return products_of(r.problem) * r.depth.axis.kernel * r.depth.axis.out; }

namespace {

// Returns the numbers that a thread's scratch holds.
int64_t numbers_of_scratch(const Request& r) { return r.dtype == Dtype::float64 ? kScratchFloats / 2 : kScratchFloats; }

// A convolution whose one tap meets no padding has no rows to keep apart.
void join_rows(Problem* p, Strides* x, Strides* y, bool forward) {
  if (!one_tap(p->h) || !one_tap(p->w)) return;
  // It reads every stride-th row, and column, and no other. (Its grad_input also writes zeros to the others.)
  const auto skip = [](Axis* a, int64_t* stride) {
    *stride *= a->stride;
    a->in = a->out;
    a->stride = 1;
  };
  if (forward) {
    skip(&p->h, &x->h);
    // Kernels read columns that are neighbours, or channels that are.
    if (x->w != 1) skip(&p->w, &x->w);
  }
  if (p->h.in != p->h.out || p->w.in != p->w.out || p->h.out == 1) return;
  if (x->h != p->w.in * x->w || y->h != p->w.out * y->w) return;
  p->w.in = p->w.out = p->h.out * p->w.out;
  p->h.in = p->h.out = 1;
  // A single column has no stride.
  p->h.stride = p->w.stride = 1;
}

}  // namespace

std::vector<Correlation> correlations_of(const Request& r) {
  const bool forward = r.direction == Direction::forward;
  Problem p = r.problem;
  Strides x = r.x_strides, y = r.y_strides;
  join_rows(&p, &x, &y, forward);
  Correlation c{};
  c.scratch = numbers_of_scratch(r);
  c.batch = p.batch;
  c.groups = p.groups;
  c.in_channels = forward ? p.in_channels : p.out_channels;
  c.out_channels = forward ? p.out_channels : p.in_channels;
  c.w = phases(r, p.w);
  c.input_strides = forward ? x : y;
  c.output_strides = forward ? y : x;
  c.weight_strides = r.w_strides;
  if (!forward) std::swap(c.weight_strides.o, c.weight_strides.c);
  const auto spread = [](const Axis& a) { return a.kernel > 1 && std::max(a.stride, a.dilation) > 1; };
  c.longest_run = !forward && (spread(p.h) || spread(p.w)) ? kGradInputRun : kRun;
  std::vector<Correlation> all;
  for (const Phase& h : phases(r, p.h)) {
    c.h = h;
    all.push_back(c);
  }
  return all;
}

GradWeight grad_weight_of(const Request& r) {
  GradWeight work{{r.problem, r.x_strides, r.y_strides, r.w_strides, false, numbers_of_scratch(r)}, nullptr, nullptr, nullptr};
  join_rows(&work.problem, &work.input_strides, &work.grad_output_strides, true);
  return work;
}

GradWeight exchanged(GradWeight work) {
  std::swap(work.problem.in_channels, work.problem.out_channels);
  std::swap(work.input_strides, work.grad_output_strides);
  std::swap(work.weight_strides.o, work.weight_strides.c);
  work.exchanged = !work.exchanged;
  return work;
}

}  // namespace groupwise
