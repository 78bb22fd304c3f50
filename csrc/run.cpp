#include "run.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/layout.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

struct Freed {
  void operator()(float* p) const { std::free(p); }
};

}  // namespace

float* scratch() {
  thread_local std::unique_ptr<float, Freed> memory;
  if (!memory) {
    void* p = nullptr;
    // One vector beyond the end is for loads whose last lanes are not used.
    if (posix_memalign(&p, 64, kScratchFloats * sizeof(float) + 64) != 0) throw std::bad_alloc();
    memory.reset(static_cast<float*>(p));
  }
  return memory.get();
}

template <class Real>
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const Real* tensor, const Strides& s, Real* sums,
                  bool threaded, ParallelFor parallel_for) {
  const Bodies<Real>& target = kernels().of<Real>();
  run_tasks(ceil_div(channels, kChannelBlock), threaded, parallel_for,
            [&](int64_t begin, int64_t end) { target.sum_channels(batch, channels, h, w, tensor, s, sums, begin, end); });
}

template void sum_channels(int64_t, int64_t, int64_t, int64_t, const float*, const Strides&, float*, bool, ParallelFor);
template void sum_channels(int64_t, int64_t, int64_t, int64_t, const double*, const Strides&, double*, bool, ParallelFor);

}  // namespace groupwise
