#include "plan/measured.h"

#include <pthread.h>

#include <mutex>
#include <unordered_map>

namespace groupwise {
namespace {

struct Memory {
  std::mutex mutex;
  std::unordered_map<std::string, Timings> timings;  // by instruction set and key
};

Memory& memory() {
  // Never destroyed: threads may still convolve while the process ends.
  static Memory* made = [] {
    // A child forked while another thread holds the mutex would find it locked forever.
    pthread_atfork([] { memory().mutex.lock(); }, [] { memory().mutex.unlock(); }, [] { memory().mutex.unlock(); });
    return new Memory;
  }();
  return *made;
}

}  // namespace

void remember(const std::string& isa, const std::string& key, const Timings& timings) {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  memory().timings[isa + " " + key] = timings;
}

void remember(const Request& request, const Timings& timings) { remember(request.target->isa, key_of(request), timings); }

void forget_all() {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  memory().timings.clear();
}

std::optional<Timings> remembered(const Request& request) {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  const auto found = memory().timings.find(std::string(request.target->isa) + " " + key_of(request));
  if (found == memory().timings.end()) return std::nullopt;
  return found->second;
}

}  // namespace groupwise
