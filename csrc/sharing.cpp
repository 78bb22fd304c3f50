#include "sharing.h"

#include <algorithm>
#include <atomic>

namespace groupwise {
namespace {

// By the number of the instruction set.
std::atomic<double> products_a_lane[16] = {};

// Negative: measured.
std::atomic<double> told_start{-1};

}  // namespace

void share_from(const Kernels& target, double products) { products_a_lane[target.number] = products; }

double shared_from(const Kernels& target, int64_t threads) {
  return products_a_lane[target.number].load(std::memory_order_relaxed) * static_cast<double>(target.lanes * threads);
}

int64_t threads_worth(const Request& r) {
  return static_cast<double>(products_of(r)) >= shared_from(*r.target, r.threads) ? r.threads : 1;
}

bool saves_time(const Share& share, int64_t threads, const Machine& m) {
  const double alone = std::max(share.operations / m.peak, share.bytes / m.bandwidth);
  return alone - alone / static_cast<double>(threads) > m.start;
}

bool worth_threads(const Share& share, int64_t threads, ParallelFor parallel_for) {
  if (threads <= 1) return false;
  const double told = told_start.load(std::memory_order_relaxed);
  const Kernels& target = kernels();
  Machine machine{2e9 * target.lanes, 4e9, told >= 0 ? told : start_seconds(target, threads, parallel_for)};
  // Processors are faster than this and slower than 64 times this. What both agree on takes no further measurement, which a first
  // small call would wait for.
  if (!saves_time(share, threads, machine)) return false;
  if (saves_time({share.operations / 64, share.bytes / 64}, threads, machine)) return true;
  machine.peak = peak_of(target);
  machine.bandwidth = copy_bandwidth();
  return saves_time(share, threads, machine);
}

void start_takes(double seconds) { told_start = seconds; }

}  // namespace groupwise
