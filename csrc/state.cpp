#include "state.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <utility>

namespace groupwise {
namespace {

std::atomic<bool> process_routed{false};
thread_local int thread_routed = 0;
thread_local std::string thread_forced;

struct Ran {
  Request request;
  Choice choice;
};

struct Log {
  std::mutex mutex;
  std::deque<Ran> plans;
  int64_t kept = 0;  // ever
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

void remember(const Request& request, const Choice& choice) {
  Log& l = log();
  const std::lock_guard<std::mutex> lock(l.mutex);
  if (l.plans.size() == kMostPlans) l.plans.pop_front();
  l.plans.push_back({request, choice});
  l.kept++;
}

Remembered remembered() {
  Log& l = log();
  std::deque<Ran> plans;
  int64_t until;
  {
    const std::lock_guard<std::mutex> lock(l.mutex);
    plans = l.plans;
    until = l.kept;
  }
  std::string json = "[";
  for (const Ran& ran : plans) json += (json.size() > 1 ? ", " : "") + describe(ran.request, ran.choice);
  return {json + "]", until};
}

void forget(int64_t until) {
  Log& l = log();
  const std::lock_guard<std::mutex> lock(l.mutex);
  const auto newer = std::min<int64_t>(l.plans.size(), l.kept - until);
  l.plans.erase(l.plans.begin(), l.plans.end() - newer);
}

}  // namespace groupwise
