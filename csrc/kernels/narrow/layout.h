// Lays out the weight's gradient of narrow groups, from channels-last tensors in place.
#pragma once

#include "kernels/channels_layout.h"

namespace groupwise {

// The outputs that a lane of a weight's gradient sums before its sums are added to those of others. In runs of `kRun`, 9x9 taps
// on 14x14 outputs had three times PyTorch's error.
constexpr int64_t kSummedOutputs = 96;

// Reads channels-last tensors in place, with lanes along the output channels of depthwise and narrow groups. A
// task sums one of `blocks` blocks of groups, the last of which is what is left, over one of `parts` parts.
struct GradWeightNarrowLayout {
  Block block;
  bool slides;  // the sums of 3x3 taps (slide_weight-inl.h)
  bool rows;    // the gradients of outputs slide past rows of taps (rows_weight-inl.h)
  bool ahead;   // the rows of the next band or block are fetched ahead
  int64_t blocks, parts, floats;
  int64_t tasks(const Problem&) const { return parts * blocks; }
};

bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightNarrowLayout* layout);

// Tells whether a layout of the work has `rows`: with AVX-512, whose 32 registers hold the sums of enough taps. In 16 so few fit
// that their products wait for each other (AVX2 on an AMD EPYC of Zen 4: as fast as places of 3x3 taps).
bool slides_past_rows(const GradWeightShape& work, int64_t lanes);

}  // namespace groupwise
