#include "kernels/maxpool/maxpool.h"

#include "run.h"
#include "sharing.h"
#include "targets/isa.h"

namespace groupwise {

void max_pool(const MaxPool& work, const NormRun& run) {
  const auto body = kernels().max_pool_rows;
  const int64_t rows = work.samples * work.out_height;
  const int64_t taps = work.kernel[0] * work.kernel[1];
  const auto outputs = static_cast<double>(rows * work.out_width * work.channels);
  const auto inputs = static_cast<double>(work.samples * work.height * work.width * work.channels);
  const Share share{outputs * static_cast<double>(taps), (inputs + outputs) * (work.low ? 2 : 4)};
  const bool threaded = worth_threads(share, run.threads, run.parallel_for);
  run_tasks(rows, threaded, run.parallel_for, [&](int64_t begin, int64_t end) { body(work, begin, end); });
}

}  // namespace groupwise
