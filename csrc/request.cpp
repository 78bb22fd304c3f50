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
  for (const bool b : {r.channels_last, r.float32, r.transposed}) f(b);
  f(r.threads);
  f(r.dimensions);
  for (const Strides& s : {r.x_strides, r.y_strides})
    for (const int64_t n : {s.n, s.c, s.h, s.w}) f(n);
  const WeightStrides& w = r.w_strides;
  for (const int64_t n : {w.group, w.o, w.c, w.h, w.w}) f(n);
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

std::vector<Correlation> correlations_of(const Request& r) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  Correlation c{};
  c.batch = p.batch;
  c.groups = p.groups;
  c.in_channels = forward ? p.in_channels : p.out_channels;
  c.out_channels = forward ? p.out_channels : p.in_channels;
  c.w = phases(r, p.w);
  c.input_strides = forward ? r.x_strides : r.y_strides;
  c.output_strides = forward ? r.y_strides : r.x_strides;
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
  return {r.problem, nullptr, r.x_strides, nullptr, r.y_strides, nullptr, r.w_strides};
}

}  // namespace groupwise
