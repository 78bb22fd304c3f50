#include "plan/recording.h"

#include <pthread.h>

#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "forked.h"

namespace groupwise {
namespace {

struct Recording {
  pthread_t owner;
  bool open = true;
  int64_t dropped = 0;
  std::vector<std::shared_ptr<const Plan>> plans;
  std::string json;
};

// How many recordings are open. Whatever makes a block of one thread precede a convolution of another also makes the
// convolution see this number, so relaxed loads are enough.
std::atomic<int64_t> open_recordings{0};

struct Recordings {
  std::mutex mutex;
  std::map<int64_t, Recording> all;
  int64_t next = 1;
};

// A child has none of its parent's other threads, which would never close what they opened.
void keep_own(Recordings& r) {
  int64_t open = 0;
  for (auto at = r.all.begin(); at != r.all.end();) {
    if (!pthread_equal(at->second.owner, pthread_self())) {
      at = r.all.erase(at);
      continue;
    }
    open += at->second.open;
    ++at;
  }
  open_recordings = open;
}

Recordings& recordings() { return forked<Recordings, keep_own>(); }

std::string describe(const Recording& recording) {
  std::string json = "{\"plans\": [";
  for (size_t i = 0; i < recording.plans.size(); i++) json += (i > 0 ? ", " : "") + describe(*recording.plans[i]);
  return json + "], \"dropped\": " + std::to_string(recording.dropped) + "}";
}

}  // namespace

int64_t start_recording() {
  Recordings& r = recordings();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.all[r.next].owner = pthread_self();
  open_recordings++;
  return r.next++;
}

void record(const std::shared_ptr<const Plan>& plan) {
  if (open_recordings.load(std::memory_order_relaxed) == 0) return;
  Recordings& r = recordings();
  const std::lock_guard<std::mutex> lock(r.mutex);
  for (auto& [number, recording] : r.all) {
    if (!recording.open) continue;
    if (static_cast<int64_t>(recording.plans.size()) < kMostRecorded) {
      recording.plans.push_back(plan);
    } else {
      recording.dropped++;
    }
  }
}

std::string stop_recording(int64_t number) {
  Recordings& r = recordings();
  Recording* recording = nullptr;
  {
    const std::lock_guard<std::mutex> lock(r.mutex);
    const auto found = r.all.find(number);
    if (found == r.all.end()) return describe(Recording{});
    recording = &found->second;
    if (recording->open) open_recordings--;
    recording->open = false;
  }
  // No other thread reads or writes a closed recording, so convolutions need not wait for its text.
  if (recording->json.empty()) recording->json = describe(*recording);
  return recording->json;
}

void forget_recording(int64_t number) {
  Recordings& r = recordings();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.all.erase(number);
}

}  // namespace groupwise
