// Convolutions of doubles have no activation, and sums that begin with the bias. A residual is what earlier planes of a volume
// left.
#include "kernels/finish_block-inl.h"

namespace groupwise::GW_TARGET {

void finish_runs(const Correlation& c, Real* y, int64_t runs, int64_t apart, int64_t count, const Late&) {
  if (!c.epilogue || !c.epilogue->residual) return;
  const Real* residual = c.epilogue->residual + (y - c.output);
  for (int64_t r = 0; r < runs; r++)
    for (int64_t i = 0; i < count; i += kLanes) {
      Real* to = y + r * apart + i;
      store_some(to, load_some(to, count - i) + load_some(residual + r * apart + i, count - i), count - i);
    }
}

}  // namespace groupwise::GW_TARGET
