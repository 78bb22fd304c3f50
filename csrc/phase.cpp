#include <numeric>

#include "problem.h"

namespace groupwise {

Phase forward_phase(const Axis& a) { return {a.in, a.out, a.stride, -a.pad, a.kernel, a.dilation, 0, 1, 0, 1}; }

std::vector<Phase> grad_input_phases(const Axis& a) {
  std::vector<Phase> phases;
  const int64_t common = std::gcd(a.stride, a.dilation), step = a.stride / common;
  for (int64_t remainder = 0; remainder < a.stride && remainder < a.in; remainder++) {
    // Taps k with (remainder + pad - k * dilation) divisible by the stride: every `step`-th from the first on.
    int64_t first = 0;
    while (first < step && first < a.kernel && (remainder + a.pad - first * a.dilation) % a.stride != 0) first++;
    Phase s{a.out, (a.in - remainder + a.stride - 1) / a.stride, 1, 0, 0, 1, 0, 0, remainder, a.stride};
    if (first < step && first < a.kernel) {
      s.taps = (a.kernel - 1 - first) / step + 1;
      s.index = first + (s.taps - 1) * step;  // the last tap reaches furthest back
      s.index_step = -step;
      s.spacing = a.dilation / common;
      s.low = (remainder + a.pad - s.index * a.dilation) / a.stride;
    }
    phases.push_back(s);
  }
  return phases;
}

}  // namespace groupwise
