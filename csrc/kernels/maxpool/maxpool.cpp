#include "kernels/maxpool/maxpool.h"

#include "run.h"
#include "targets/isa.h"

namespace groupwise {

void max_pool(const MaxPool& work, const NormRun& run) {
  // With fewer comparisons a second thread costs more than it saves.
  constexpr int64_t kWorthAThread = 65536;
  const auto body = kernels().max_pool_rows;
  const int64_t rows = work.samples * work.out_height;
  const int64_t taps = work.kernel[0] * work.kernel[1];
  const bool threaded = run.threads > 1 && rows * work.out_width * work.channels * taps >= kWorthAThread;
  run_tasks(rows, threaded, run.parallel_for, [&](int64_t begin, int64_t end) { body(work, begin, end); });
}

}  // namespace groupwise
