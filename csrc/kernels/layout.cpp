#include "kernels/layout.h"

namespace groupwise {

int64_t lowest(const std::vector<Phase>& phases) {
  int64_t low = phases.front().low;
  for (const Phase& s : phases)
    if (s.taps > 0) low = std::min(low, s.low);
  return low;
}
int64_t reach(const std::vector<Phase>& phases) {
  int64_t high = lowest(phases);
  for (const Phase& s : phases)
    if (s.taps > 0) high = std::max(high, s.low + s.span());
  return high - lowest(phases);
}
// Returns the most outputs of a row in any phase, and one where there are none.
int64_t widest(const std::vector<Phase>& phases) {
  int64_t out = 1;
  for (const Phase& s : phases) out = std::max(out, s.out);
  return out;
}

int64_t numbers_of(const CorrelationShape& c) {
  const Phase& w = c.w.front();
  return c.batch * c.groups * (c.in_channels * c.h.in * w.in + c.out_channels * c.h.out * c.h.step * widest(c.w) * w.step);
}

int64_t numbers_of(const GradWeightShape& work) {
  const Problem& p = work.problem;
  return p.batch * p.groups * (p.in_channels * p.h.in * p.w.in + p.out_channels * p.h.out * p.w.out);
}

bool few_pixels(const CorrelationShape& c, int64_t threads) {
  constexpr int64_t kMany = 64;
  return c.batch * c.h.out * widest(c.w) < kMany * threads;
}

bool one_image(const Strides& s, int64_t pixels) { return s.c == 1 && s.n == s.w * pixels && pixels > 1; }

bool reads_once(const Phase& s) {
  return s.taps == 1 && s.stride == 1 && s.step == 1 && s.first == 0 && s.low == 0 && s.in == s.out;
}

Correlation with_joined_samples(const Correlation& c) {
  const int64_t pixels = c.w.front().out;
  if (c.batch == 1 || c.h.out != 1 || c.w.size() != 1 || !reads_once(c.h) || !reads_once(c.w.front())) return c;
  if (!one_image(c.input_strides, pixels) || !one_image(c.output_strides, pixels)) return c;
  Correlation joined = c;
  Phase w = c.w.front();
  w.in = w.out = pixels * c.batch;
  joined.w = std::vector<Phase>{w};
  joined.batch = 1;
  return joined;
}

GradWeight with_joined_samples(const GradWeight& work) {
  const Problem& p = work.problem;
  const int64_t pixels = p.w.out;
  if (p.batch == 1 || p.h.out != 1 || !one_tap(p.h) || !one_tap(p.w) || p.h.stride != 1 || p.w.stride != 1) return work;
  if (!one_image(work.input_strides, pixels) || !one_image(work.grad_output_strides, pixels)) return work;
  GradWeight joined = work;
  joined.problem.w.in = joined.problem.w.out = pixels * p.batch;
  joined.problem.batch = 1;
  return joined;
}

Cuts cut(const Phase& s, int64_t size) {
  Cuts cuts{size, s.out / size, 0, s.out % size, 0};
  for (int64_t i = 0; i < cuts.count; i++) cuts.taps += clipped(s, i * size, size).taps;
  if (cuts.last > 0) cuts.last_taps = clipped(s, cuts.count * size, cuts.last).taps;
  return cuts;
}

}  // namespace groupwise
