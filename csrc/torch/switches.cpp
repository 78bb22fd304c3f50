#include "torch/switches.h"

#include <atomic>
#include <utility>

namespace groupwise {
namespace {

std::atomic<bool> process_dispatched{false};
thread_local int thread_dispatched = 0;
thread_local std::string thread_forced;

}  // namespace

bool dispatched() {
  return thread_dispatched != 0 ? thread_dispatched > 0 : process_dispatched.load(std::memory_order_relaxed);
}
void dispatch(bool on) { process_dispatched = on; }
int dispatch_thread(int state) { return std::exchange(thread_dispatched, state); }

const std::string& forced() { return thread_forced; }
std::string force(std::string kernel) { return std::exchange(thread_forced, std::move(kernel)); }

}  // namespace groupwise
