#include "binding/tuning.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <mutex>

#include "forked.h"
#include "plan/text.h"

namespace groupwise {
namespace {

double processor_clock() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr double kNever = std::numeric_limits<double>::infinity();
// A contender whose second call took so many times the best one's time is not run again.
constexpr double kHopeless = 2;
// The least time of so many calls varies little. Two calls are enough where they took so many seconds together. A larger budget
// gets more of both.
constexpr int kRounds = 10, kCallsOfRounds = 100;
constexpr double kEnough = 0.1;

std::atomic<double> budget{0};
std::atomic<double (*)()> clock_in_use{processor_clock};
std::atomic<bool> busy{false};
std::atomic<int64_t> requests{0}, lost{0};
std::atomic<double> spent{0};
// The seconds that measuring may take, and those that it took since they were full.
std::atomic<double> allowed{0}, drawn{0};
std::atomic<void (*)()> spent_told{nullptr}, unknown_told{nullptr};
// Whether only those requests are measured of which no table knows, and that is still to be told.
std::atomic<bool> only_unknown{false}, untold{false};

struct Path {
  std::mutex mutex;
  std::string path;
};
// No thread of a forked child measures.
void nobody_measures(Path&) { busy = false; }
Path& file() { return forked<Path, nobody_measures>(); }

std::string line_of(const Request& request, const Measured& measured) {
  const Timings& timings = measured.timings;
  // A line that another process could not write whole has no end: this one does not join it.
  std::string line =
      std::string("\n{\"isa\": \"") + request.target->isa + "\", \"request\": \"" + key_of(request) + "\", \"seconds\": {";
  for (size_t i = 0; i < timings.size(); i++) {
    line += (i > 0 ? ", \"" : "\"") + timings[i].first + "\": " + json_number(timings[i].second, 4);
  }
  return line + "}, \"tries\": " + std::to_string(measured.tries) + "}\n";
}

// Adds a line by one write, which no other process's line can part.
void keep(const std::string& line) {
  const std::lock_guard<std::mutex> lock(file().mutex);
  if (file().path.empty()) return;
  const int to = open(file().path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (to < 0 || write(to, line.data(), line.size()) != static_cast<ssize_t>(line.size())) lost++;
  if (to >= 0) close(to);
}

// Returns the seconds of one call, and adds them to `used`. One that fails takes forever: what the planner chose may still run.
double time_of(const Contender& contender, double (*now)(), double* used) {
  const double start = now();
  bool failed = false;
  try {
    contender.run();
  } catch (const std::exception&) {
    failed = true;
  }
  const double time = std::max(now() - start, 1e-9);
  *used += time;
  return failed ? kNever : time;
}

// Counts the seconds of one request, and tells once that all are spent.
void draw(double seconds) {
  spent = spent + seconds;
  const bool before_was_left = drawn < allowed;
  drawn = drawn + seconds;
  if (void (*const told)() = spent_told; told && before_was_left && drawn >= allowed) told();
}

}  // namespace

void tune(double calls, double seconds, bool unknown, const std::string& path) {
  const std::lock_guard<std::mutex> lock(file().mutex);
  file().path = path;
  allowed = seconds;
  only_unknown = unknown;
  untold = unknown;
  budget = calls;
}
bool measures(bool in_table) {
  return budget.load(std::memory_order_relaxed) > 0 && drawn < allowed && !(in_table && only_unknown);
}
void refill() { drawn = 0; }
void when_spent(void (*told)()) { spent_told = told; }
void when_unknown(void (*told)()) { unknown_told = told; }

void set_clock(double (*clock)()) { clock_in_use = clock ? clock : processor_clock; }

bool measure(const Request& request, const std::vector<Contender>& contenders, int64_t tries, bool in_table) {
  if (busy.exchange(true)) return false;
  struct Done {
    ~Done() { busy = false; }
  } done;
  // A thread that was measuring a moment ago may have measured this.
  const Measured before = remembered(request).value_or(Measured{});
  if (before.tries != tries) return true;
  if (void (*const told)() = unknown_told; !in_table && untold.exchange(false) && told) told();
  double (*const now)() = clock_in_use;
  const size_t count = contenders.size();
  std::vector<double> first(count, kNever), least(count, kNever), taken(count, 0);
  double used = 0, total = 0, best = kNever;
  const auto call = [&](size_t i) {
    double took = 0;
    const double time = time_of(contenders[i], now, &took);
    used += took, total += took;
    return time;
  };
  // PyTorch's first call, which may compile its kernel, would run without measuring too. Its second tells what a call is worth.
  first[0] = call(0);
  least[0] = call(0);
  if (!(least[0] < kNever)) {
    remember(request, {before.timings, before.tries + 1});
    draw(total);
    return true;
  }
  const double half = budget / 2 * least[0];
  // The first call of each fills caches and packs weights: it only says what the next may take. Half of the budget is kept for
  // those, however slow a first call was.
  used = 0;
  for (size_t i = 1; i < count && used < half; i++) first[i] = call(i);
  used = 0;
  const double larger = std::max(1.0, budget / kCallsOfRounds), rounds = kRounds * larger, enough = kEnough * larger;
  for (int round = 0; round < rounds; round++) {
    for (size_t i = 0; i < count; i++) {
      const double known = std::min(least[i], first[i]);
      if (used + known > half || (round > 0 && known > kHopeless * best) || (round > 1 && taken[i] > enough)) continue;
      const double time = call(i);
      taken[i] += time;
      if (!(time < kNever)) first[i] = least[i] = kNever;
      least[i] = std::min(least[i], time);
      best = std::min(best, least[i]);
    }
  }
  Measured found{before.timings, before.tries + 1};
  for (size_t i = 0; i < count; i++) {
    const double time = std::min(least[i], first[i]);
    if (!(time < kNever)) continue;
    auto known = std::find_if(found.timings.begin(), found.timings.end(),
                              [&](const auto& timing) { return timing.first == contenders[i].kernel; });
    if (known == found.timings.end()) {
      found.timings.emplace_back(contenders[i].kernel, time);
    } else {
      known->second = std::min(known->second, time);
    }
  }
  remember(request, found);
  keep(line_of(request, found));
  requests++;
  draw(total);
  return true;
}

std::string measured_so_far() {
  return "{\"requests\": " + std::to_string(requests) + ", \"seconds\": " + json_number(spent, 6) +
         ", \"drawn\": " + json_number(drawn, 6) + ", \"lost\": " + std::to_string(lost) + "}";
}

}  // namespace groupwise
