#include "state.h"

#include <pthread.h>

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
int route_thread(int state) { return std::exchange(thread_routed, state); }

const std::string& forced() { return thread_forced; }
void force(const char* kernel) { thread_forced = kernel ? kernel : ""; }

void remember(const Request& request, const Choice& choice) {
  Log& l = log();
  const std::lock_guard<std::mutex> lock(l.mutex);
  if (l.plans.size() == kMostPlans) l.plans.pop_front();
  l.plans.push_back({request, choice});
}

std::string remembered(bool clear) {
  Log& l = log();
  std::deque<Ran> plans;
  {
    const std::lock_guard<std::mutex> lock(l.mutex);
    plans = l.plans;
    if (clear) l.plans.clear();
  }
  std::string json = "[";
  for (const Ran& ran : plans) json += (json.size() > 1 ? ", " : "") + describe(ran.request, ran.choice);
  return json + "]";
}

}  // namespace groupwise
