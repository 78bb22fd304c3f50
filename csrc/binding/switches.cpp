#include "binding/switches.h"

#include <atomic>
#include <utility>

namespace groupwise {
namespace {

std::atomic<bool> process_dispatched{false};
std::atomic<bool (*)()> asks_node{nullptr};
thread_local int thread_dispatched = 0;
thread_local std::string thread_forced;

}  // namespace

bool dispatched() {
  if (thread_dispatched != 0) return thread_dispatched > 0;
  if (process_dispatched.load(std::memory_order_relaxed)) return true;
  bool (*const marked)() = asks_node.load(std::memory_order_relaxed);
  return marked && marked();
}
void dispatch(bool on) { process_dispatched = on; }
bool dispatched_if_harmful() { return thread_dispatched == -2; }
int dispatch_thread(int state) { return std::exchange(thread_dispatched, state); }
void dispatch_where(bool (*marked)()) { asks_node = marked; }

const std::string& forced() { return thread_forced; }
std::string force(std::string kernel) { return std::exchange(thread_forced, std::move(kernel)); }

}  // namespace groupwise
