#include "kernels/meanpool/meanpool.h"

#include "run.h"
#include "targets/isa.h"

namespace groupwise {

void mean_pool(const MeanPool& work, const NormRun& run) {
  // With fewer numbers a second thread costs more than it saves.
  constexpr int64_t kWorthAThread = 131072;
  const auto body = kernels().mean_pool_rows;
  const bool threaded = run.threads > 1 && work.samples * work.channels * work.pixels >= kWorthAThread;
  run_tasks(work.samples * ceil_div(work.channels, kMeanChannels), threaded, run.parallel_for,
            [&](int64_t begin, int64_t end) { body(work, begin, end); });
}

}  // namespace groupwise
