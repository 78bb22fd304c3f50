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

}  // namespace groupwise
