#include "state.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace groupwise {
namespace {

std::atomic<bool> process_routed{false};
thread_local int thread_routed = 0;
thread_local std::string thread_forced;

// A ring, so that to keep a plan allocates nothing.
struct Log {
  std::mutex mutex;
  Plan ring[kMostPlans];
  int64_t from = 0, kept = 0;  // what is told is [from, kept), of all ever kept
};

Log& log() {
  // Never destroyed: threads may still convolve while the process ends.
  static Log* log = [] {
    Log* made = new Log;
    // A child forked while another thread writes a plan would find the mutex locked for ever.
    pthread_atfork([] { groupwise::log().mutex.lock(); }, [] { groupwise::log().mutex.unlock(); },
                   [] { groupwise::log().mutex.unlock(); });
    return made;
  }();
  return *log;
}

}  // namespace

bool routed() { return thread_routed != 0 ? thread_routed > 0 : process_routed.load(std::memory_order_relaxed); }
void route(bool on) { process_routed = on; }
int thread_route() { return thread_routed; }
int route_thread(int state) { return std::exchange(thread_routed, state); }

const std::string& forced() { return thread_forced; }
std::string force(std::string kernel) { return std::exchange(thread_forced, std::move(kernel)); }

void remember(const Plan& plan) {
  Log& l = log();
  const std::lock_guard<std::mutex> lock(l.mutex);
  l.ring[l.kept++ % kMostPlans] = plan;
  l.from = std::max(l.from, l.kept - kMostPlans);
}

Remembered remembered() {
  Log& l = log();
  std::vector<Plan> plans;
  plans.reserve(kMostPlans);  // before the lock, for which convolutions wait
  int64_t until;
  {
    const std::lock_guard<std::mutex> lock(l.mutex);
    until = l.kept;
    for (int64_t i = l.from; i < until; i++) plans.push_back(l.ring[i % kMostPlans]);
  }
  std::string json = "[";
  for (const Plan& plan : plans) json += (json.size() > 1 ? ", " : "") + describe(plan);
  return {json + "]", until};
}

void forget(int64_t until) {
  Log& l = log();
  const std::lock_guard<std::mutex> lock(l.mutex);
  l.from = std::max(l.from, until);
}

}  // namespace groupwise
