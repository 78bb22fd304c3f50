#include "kernels/gelu/gelu.h"

#include <algorithm>

#include "kernels/layout.h"
#include "run.h"
#include "sharing.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// A task has so many numbers: whole vectors of every instruction set.
constexpr int64_t kPiece = 4096;
// The operations of a number: those of an exponential, a quotient and two polynomials.
constexpr double kOperations = 60;

}  // namespace

void gelu(const Gelu& work, const NormRun& run) {
  const auto body = kernels().gelu_sweep;
  const auto numbers = static_cast<double>(work.count);
  const bool threaded = worth_threads({kOperations * numbers, (work.grad ? 12 : 8) * numbers}, run.threads, run.parallel_for);
  run_tasks(ceil_div(work.count, kPiece), threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
    body(work, {begin * kPiece, std::min(end * kPiece, work.count)});
  });
}

}  // namespace groupwise
