// Runs tasks on the caller's threads, each with scratch of its own.
#pragma once

#include "problem.h"

namespace groupwise {

// Returns this thread's scratch of kScratchFloats, which lives as long as the thread, so that its pages are faulted in once.
float* scratch();
// The same memory for half as many doubles.
template <class Real>
Real* scratch_of() {
  return reinterpret_cast<Real*>(scratch());
}

// Calls f(begin, end) over ranges of tasks: on the caller's threads if `threaded`, else here.
template <class F>
void run_tasks(int64_t tasks, bool threaded, ParallelFor parallel_for, F&& f) {
  if (!threaded || tasks < 2) {
    if (tasks > 0) f(int64_t{0}, tasks);
    return;
  }
  parallel_for(tasks, [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); }, &f);
}

// Computes sums[c], the sum over n, h and w, which is a bias's gradient: on the caller's threads if `threaded`, else here.
template <class Real>
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const Real* tensor, const Strides& strides, Real* sums,
                  bool threaded, ParallelFor parallel_for);

}  // namespace groupwise
