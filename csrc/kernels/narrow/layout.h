// Lays out the weight's gradient of narrow groups, from channels-last tensors in place.
#pragma once

#include "kernels/channels_layout.h"

namespace groupwise {

// The form that reads channels-last tensors in place, with lanes along the output channels of depthwise and narrow groups. A
// task sums one of `blocks` blocks of groups, the last of which is what is left, over one of `parts` parts.
struct GradWeightNarrowLayout {
  Block block;
  int64_t blocks, parts, floats;
  int64_t tasks(const Problem&) const { return parts * blocks; }
};

// Tells whether that form computes the work.
inline bool narrow(const GradWeight& work, int64_t lanes) {
  const Problem& p = work.problem;
  if (work.input_strides.c != 1 || work.grad_output_strides.c != 1) return false;
  if (p.groups * p.out_channels < std::max<int64_t>(8, lanes)) return false;
  // Measured on one core, in ms, in place | copied: depthwise 3x3 28x28 0.128 | 0.158, of stride 2 0.062 | 0.107, 14x14 0.053 |
  // 0.057, but 7x7 56x56 0.633 | 0.494; groups of 4 channels 0.539 | 0.782, of 8 0.657 | 0.402.
  if (depthwise(p)) return p.h.kernel * p.w.kernel <= 9;
  return p.out_channels < std::max<int64_t>(8, lanes) && lanes_fit(p.in_channels, p.out_channels, lanes);
}
bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightNarrowLayout* layout);

}  // namespace groupwise
