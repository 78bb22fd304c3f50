// Applies a correlation's epilogue to outputs that a kernel has just computed, while they are in the cache.
#pragma once

#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// What sums do not begin with is added before the epilogue: a bias along each run, or null, and the residual.
struct Late {
  const Real* bias;
  bool residual;
};

// Finishes `runs` runs of `count` neighbouring outputs, `apart` numbers from one to the next.
void finish_runs(const Correlation& c, Real* y, int64_t runs, int64_t apart, int64_t count, const Late& late = {nullptr, true});

// The outputs of a task: `rows` rows of one phase of the height from `row` on, and `columns` columns of all phases of the width
// together. Channels are counted over all groups.
struct Finished {
  int64_t n, channel, channels, row, rows, column, columns;
};
void finish_block(const Correlation& c, const Finished& block);

}  // namespace groupwise::GW_TARGET
