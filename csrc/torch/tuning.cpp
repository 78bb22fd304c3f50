#include "torch/tuning.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <limits>
#include <mutex>

namespace groupwise {
namespace {

double processor_clock() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A contender that once took this many times the best one's time is not run again.
constexpr double kHopeless = 2;
// The least time of so many calls varies little.
constexpr int kRounds = 10;

std::atomic<double> budget{0};
std::atomic<double (*)()> clock_in_use{processor_clock};
std::atomic<bool> busy{false};
std::atomic<int64_t> requests{0}, lost{0};
std::atomic<double> spent{0};

struct Path {
  std::mutex mutex;
  std::string path;
};
Path& file() {
  // Never destroyed: threads may still convolve while the process ends. A forked child finds it open, and no thread measures.
  static Path* made = [] {
    pthread_atfork([] { file().mutex.lock(); }, [] { file().mutex.unlock(); },
                   [] {
                     busy = false;
                     file().mutex.unlock();
                   });
    return new Path;
  }();
  return *made;
}

std::string line_of(const Request& request, const Timings& timings) {
  std::string line =
      std::string("{\"isa\": \"") + request.target->isa + "\", \"request\": \"" + key_of(request) + "\", \"seconds\": {";
  for (size_t i = 0; i < timings.size(); i++) {
    char number[32];
    std::snprintf(number, sizeof number, "%.4g", timings[i].second);
    line += (i > 0 ? ", \"" : "\"") + timings[i].first + "\": " + number;
  }
  return line + "}}\n";
}

// Adds a line by one write, which no other process's line can part.
void keep(const std::string& line) {
  const std::lock_guard<std::mutex> lock(file().mutex);
  if (file().path.empty()) return;
  const int to = open(file().path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (to < 0 || write(to, line.data(), line.size()) != static_cast<ssize_t>(line.size())) lost++;
  if (to >= 0) close(to);
}

}  // namespace

void tune(double calls, const std::string& path) {
  const std::lock_guard<std::mutex> lock(file().mutex);
  file().path = path;
  budget = calls;
}
bool tuning() { return budget.load(std::memory_order_relaxed) > 0; }

void set_clock(double (*clock)()) { clock_in_use = clock ? clock : processor_clock; }

bool measure(const Request& request, const std::vector<Contender>& contenders) {
  if (busy.exchange(true)) return false;
  struct Done {
    ~Done() { busy = false; }
  } done;
  double (*const now)() = clock_in_use;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> least(contenders.size(), kNever);
  const double begun = now();
  // The first call of each fills caches and packs weights, and only says whether the contender is hopeless.
  std::vector<double> first(contenders.size(), kNever);
  double best = kNever, most = kNever;
  for (size_t i = 0; i < contenders.size() && now() - begun < most; i++) {
    const double start = now();
    contenders[i].run();
    first[i] = now() - start;
    best = std::min(best, first[i]);
    if (i == 0) most = budget * first[0];
  }
  for (int round = 0; round < kRounds; round++) {
    for (size_t i = 0; i < contenders.size(); i++) {
      const double known = std::min(least[i], first[i]);
      if (known > kHopeless * best || (round > 0 && now() - begun + known > most)) continue;
      const double start = now();
      contenders[i].run();
      least[i] = std::min(least[i], now() - start);
      best = std::min(best, least[i]);
      // PyTorch's second call tells what a call is worth.
      if (i == 0) most = budget * least[0];
    }
  }
  Timings timings;
  for (size_t i = 0; i < contenders.size(); i++) {
    const double time = std::min(least[i], first[i]);
    if (time < kNever) timings.emplace_back(contenders[i].kernel, std::max(time, 1e-9));
  }
  remember(request, timings);
  keep(line_of(request, timings));
  requests++;
  spent = spent + (now() - begun);
  return true;
}

std::string measured_so_far() {
  char text[128];
  std::snprintf(text, sizeof text, "{\"requests\": %lld, \"seconds\": %.6f, \"lost\": %lld}", static_cast<long long>(requests),
                spent.load(), static_cast<long long>(lost));
  return text;
}

}  // namespace groupwise
