#include "plan/policy.h"

#include <atomic>
#include <cstdio>

#include "plan/measured.h"

namespace groupwise {
namespace {

std::atomic<int64_t> epoch{0};

// Timings of a few calls vary by so much: a kernel of ours that was measured to be no faster than this leaves PyTorch's.
constexpr double kTie = 0.03;

std::string times(double factor) {
  char text[32];
  std::snprintf(text, sizeof text, factor < 10 ? "%.2fx" : "%.0fx", factor);
  return text;
}

// Judges by what was measured here. False if a candidate, or PyTorch's kernel, was not.
bool judge_measured(const Request& request, const std::vector<Candidate>& candidates, Judgement* judgement) {
  const std::optional<Timings> timings = remembered(request);
  if (!timings) return false;
  const auto seconds = [&](const std::string& name) {
    for (const auto& [kernel, time] : *timings)
      if (kernel == name) return time;
    return 0.0;
  };
  const double pytorch = seconds(kPyTorch);
  if (!(pytorch > 0)) return false;
  for (const Candidate& c : candidates) {
    const double own = seconds(c.kernel->name);
    if (own > 0) {
      judgement->speedups.push_back({pytorch / own, pytorch / own, times(pytorch / own) + " PyTorch's speed, measured here"});
    } else {
      judgement->speedups.push_back({0, 0, "not measured here within the budget"});
    }
  }
  judgement->source = Source::measured;
  judgement->least = 1 + kTie;
  return true;
}

}  // namespace

Judgement judge(const Request& request, const std::vector<Candidate>& candidates) {
  Judgement judgement{};
  if (judge_measured(request, candidates, &judgement)) return judgement;
  judgement = {Source::model, {}, 1};
  for (size_t i = 0; i < candidates.size(); i++) judgement.speedups.push_back({1, 1, "not known"});
  return judgement;
}

int64_t policy_epoch() { return epoch.load(std::memory_order_relaxed); }
void policy_changed() { epoch++; }

}  // namespace groupwise
