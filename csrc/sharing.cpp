#include "sharing.h"

#include <atomic>

namespace groupwise {
namespace {

// By the number of the instruction set.
std::atomic<double> products_a_lane[16] = {};

}  // namespace

void share_from(const Kernels& target, double products) { products_a_lane[target.number] = products; }

double shared_from(const Kernels& target, int64_t threads) {
  return products_a_lane[target.number].load(std::memory_order_relaxed) * static_cast<double>(target.lanes * threads);
}

int64_t threads_worth(const Request& r) {
  return static_cast<double>(products_of(r.problem)) >= shared_from(*r.target, r.threads) ? r.threads : 1;
}

}  // namespace groupwise
