#include "kernels/interleave/interleave.h"

#include <algorithm>

#include "run.h"
#include "sharing.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// A task has about so many numbers.
constexpr int64_t kTask = 8192;

}  // namespace

void interleave(const Interleave& work, const NormRun& run) {
  const auto body = kernels().interleave_rows;
  const int64_t step = std::max<int64_t>(1, kTask / work.channels), tasks = ceil_div(work.rows, step);
  // Two tensors are read, and as many numbers written.
  const double bytes = static_cast<double>(4 * work.rows * work.channels) * (work.low ? 2 : 4);
  const bool threaded = worth_threads({0, bytes}, run.threads, run.parallel_for);
  run_tasks(tasks, threaded, run.parallel_for,
            [&](int64_t begin, int64_t end) { body(work, begin * step, std::min(end * step, work.rows)); });
}

}  // namespace groupwise
