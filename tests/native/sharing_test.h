// Tells whether threads share work if, and only if, that saves more than they take to start.
#pragma once

#include <limits>
#include <thread>
#include <vector>

#include "kernels/interleave/interleave.h"
#include "sharing.h"

namespace groupwise {

inline void in_threads(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context) {
  std::thread other(fn, count / 2, count, context);
  fn(0, count / 2, context);
  other.join();
}

inline bool shares_where_it_pays() {
  // One operation or byte takes one thread a second.
  const auto pays = [](double operations, double bytes, int64_t threads, double start) {
    return saves_time({operations, bytes}, threads, {1, 1, start});
  };
  if (!pays(10, 0, 2, 4.9) || pays(10, 0, 2, 5.1) || !pays(3, 8, 4, 5.9) || pays(3, 8, 4, 6.1) || pays(10, 0, 1, 0))
    return false;
  static int started;
  const ParallelFor here = [](int64_t tasks, void (*fn)(int64_t, int64_t, void*), void* context) { fn(0, tasks, context); };
  const ParallelFor count = [](int64_t tasks, void (*fn)(int64_t, int64_t, void*), void* context) {
    started++;
    in_threads(tasks, fn, context);
  };
  constexpr int64_t kRows = 4096, kChannels = 8;
  std::vector<float> a(kRows * kChannels, 1), b(kRows * kChannels, 2), y(2 * kRows * kChannels);
  const Interleave work{kRows, kChannels, false, a.data(), b.data(), y.data(), nullptr};
  const auto starts = [&](double seconds) {
    start_takes(seconds);
    started = 0;
    interleave(work, {2, count});
    return started;
  };
  if (starts(0) != 1 || starts(1) != 0) return false;
  // Measured by starts of its own. One that brings no other thread takes for ever.
  return starts(-1) > 0 && start_seconds(kernels(), 3, here) == std::numeric_limits<double>::infinity();
}

}  // namespace groupwise
