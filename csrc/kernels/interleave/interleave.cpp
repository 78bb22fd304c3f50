#include "kernels/interleave/interleave.h"

#include <algorithm>

#include "run.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// With fewer numbers a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 32768;
// A task has about so many numbers.
constexpr int64_t kTask = 8192;

}  // namespace

void interleave(const Interleave& work, const NormRun& run) {
  const auto body = kernels().interleave_rows;
  const int64_t step = std::max<int64_t>(1, kTask / work.channels), tasks = ceil_div(work.rows, step);
  const bool threaded = run.threads > 1 && work.rows * work.channels * 2 >= kWorthAThread;
  run_tasks(tasks, threaded, run.parallel_for,
            [&](int64_t begin, int64_t end) { body(work, begin * step, std::min(end * step, work.rows)); });
}

}  // namespace groupwise
