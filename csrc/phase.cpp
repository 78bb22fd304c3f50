#include <algorithm>
#include <numeric>

#include "problem.h"

namespace groupwise {

Phase forward_phase(const Axis& a) { return {a.in, a.out, a.stride, -a.pad, a.kernel, a.dilation, 0, 1, 0, 1}; }

std::vector<Phase> grad_input_phases(const Axis& a) {
  std::vector<Phase> phases;
  const int64_t common = std::gcd(a.stride, a.dilation), step = a.stride / common;
  for (int64_t residue = 0; residue < a.stride && residue < a.in; residue++) {
    // Taps k with residue + pad - k * dilation divisible by the stride are every `step`-th from `first` on.
    int64_t first = 0;
    while (first < step && first < a.kernel && (residue + a.pad - first * a.dilation) % a.stride != 0) first++;
    Phase s{a.out, (a.in - residue + a.stride - 1) / a.stride, 1, 0, 0, 1, 0, 0, residue, a.stride};
    if (first < step && first < a.kernel) {
      s.taps = (a.kernel - 1 - first) / step + 1;
      s.index = first + (s.taps - 1) * step;  // the last tap reads the lowest position
      s.index_step = -step;
      s.spacing = a.dilation / common;
      s.low = (residue + a.pad - s.index * a.dilation) / a.stride;
    }
    phases.push_back(s);
  }
  return phases;
}

Phase clipped(const Phase& s, int64_t at, int64_t count) {
  const int64_t lowest = at * s.stride + s.low, highest = lowest + (count - 1) * s.stride;
  // Divisions are slow beside the few products of a strip.
  const auto spaced = [&](int64_t positions) { return s.spacing == 1 ? positions : positions / s.spacing; };
  const int64_t first = highest >= 0 ? 0 : spaced(s.spacing - 1 - highest);
  const int64_t last = lowest + s.span() < s.in ? s.taps : lowest >= s.in ? 0 : spaced(s.in - 1 - lowest) + 1;
  Phase clip = s;
  clip.taps = std::max<int64_t>(0, last - first);
  if (clip.taps == 0) return clip;
  clip.low += first * s.spacing;
  clip.index += first * s.index_step;
  return clip;
}

bool worth_clipping(const Phase& s) {
  if (s.taps < 2) return false;
  // Returns how many pairs of an output and a tap lie up to `pad` positions outside the input on one side.
  const auto outside = [&](int64_t pad) {
    if (pad <= 0) return int64_t{0};
    const int64_t taps = std::min(s.taps, pad / s.spacing), outputs = std::min(s.out, pad / s.stride);
    return (taps * (outputs + 1) + 1) / 2;
  };
  const int64_t after = (s.out - 1) * s.stride + s.low + s.span() - (s.in - 1);
  return 5 * (outside(-s.low) + outside(after)) > s.out * s.taps;
}

}  // namespace groupwise
