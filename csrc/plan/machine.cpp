#include "plan/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace groupwise {
namespace {

// Returns the least seconds of so many calls, the first of which warms up.
template <class F>
double least_seconds(int calls, F&& f) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < calls; i++) {
    const auto start = std::chrono::steady_clock::now();
    f();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

}  // namespace

double peak_of(const Kernels& target) {
  // Two threads that measure at once find about the same; the last one stays.
  static std::atomic<double> found[16] = {};
  std::atomic<double>& mine = found[target.number];
  if (mine == 0) {
    // About 20 us a call, short enough to be whole between two interrupts.
    constexpr int64_t kRounds = 8'000;
    const double operations = 2.0 * 12 * kRounds * target.lanes;
    mine = operations / least_seconds(60, [&] { target.multiply_adds(kRounds); });
  }
  return mine;
}

double copy_bandwidth() {
  static std::atomic<double> found{0};
  if (found == 0) {
    constexpr size_t kBytes = size_t{1} << 21;
    std::vector<char> from(kBytes, 1), to(kBytes);
    found = 2.0 * kBytes / least_seconds(30, [&] { std::memcpy(to.data(), from.data(), kBytes); });
  }
  return found;
}

double start_seconds(const Kernels& target, int64_t threads, ParallelFor parallel_for) {
  // More threads than the most are taken for as many.
  constexpr int64_t kMost = 256, kTries = 10;
  // A longer start says that other processes had the cores. Then it is taken for what it takes on a machine that is not busy.
  constexpr double kBusy = 1e-4, kUsual = 5e-6;
  static std::atomic<double> found[kMost + 1] = {};
  static std::atomic<int64_t> tries[kMost + 1] = {};
  const int64_t number = std::min(threads, kMost);
  if (found[number] != 0) return found[number];
  struct Seen {
    std::thread::id caller;
    std::atomic<bool> another;
  } seen{std::this_thread::get_id(), false};
  const auto look = [](int64_t, int64_t, void* context) {
    auto* s = static_cast<Seen*>(context);
    if (std::this_thread::get_id() != s->caller) s->another = true;
  };
  // About 20 us between two starts, as a small layer takes.
  constexpr int64_t kRounds = 8'000;
  double least = std::numeric_limits<double>::infinity();
  const auto begin = std::chrono::steady_clock::now();
  // The first start may make the threads.
  parallel_for(threads, look, &seen);
  for (int i = 0; i < 25 && std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(2); i++) {
    target.multiply_adds(kRounds);
    least = std::min(least, least_seconds(1, [&] { parallel_for(threads, look, &seen); }));
  }
  // One look that saw no other thread may have met a moment without any.
  const double otherwise = seen.another ? kUsual : std::numeric_limits<double>::infinity();
  if (seen.another && least < kBusy) return found[number] = least;
  if (++tries[number] == kTries) found[number] = otherwise;
  return otherwise;
}

}  // namespace groupwise
