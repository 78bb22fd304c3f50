#include "plan/plan.h"

#include <algorithm>
#include <unordered_map>

#include "kernels/converted/converted.h"
#include "kernels/volume.h"
#include "plan/text.h"
#include "sharing.h"

namespace groupwise {
namespace {

// The plans that a thread keeps, of a few KiB each. A program of more shapes than this plans all of them again now and then.
constexpr size_t kMostPlans = 4096;

// The most products: it would take a core weeks.
constexpr double kMostProducts = 4503599627370496.0;

// Returns why no kernel of ours computes the request, or null.
const char* unfit(const Request& r) {
  const Problem& p = r.problem;
  if (r.dtype == Dtype::other) return "groupwise computes float32, float64, bfloat16 and float16 only";
  if (p.batch < 1 || p.h.out < 1 || p.w.out < 1 || p.h.in < 1 || p.w.in < 1 || p.in_channels < 1 || p.out_channels < 1)
    return "nothing to compute";
  const char* extent = "supports strides and dilations to 1024, paddings and kernels to 65536 and sizes to 2**24";
  for (const Axis& a : {r.depth.axis, p.h, p.w})
    if (std::max(a.stride, a.dilation) > kMostStep || std::max(a.pad, a.kernel) > kMostTaps ||
        std::max(a.in, a.out) > kMostSize)
      return extent;
  // Products are counted in 64 bits, with room for those on padding and in empty lanes.
  double products = 1;
  for (const int64_t n : {p.batch, p.groups, p.in_channels, p.out_channels, p.h.kernel, p.w.kernel, p.h.out, p.w.out,
                          r.depth.axis.kernel, r.depth.axis.out})
    products *= static_cast<double>(n);
  if (products > kMostProducts) return "supports up to 2**52 products";
  // Every phase of the strides is a correlation of its own.
  if (r.direction == Direction::grad_input && p.h.stride * p.w.stride * r.depth.axis.stride > kMostPhases) return extent;
  return nullptr;
}

// Tells whether an output of this axis sees only padding: before the image, after it, or between two taps. There oneDNN in
// PyTorch 2.13 sometimes reads outside its tensors, which can end the process, so such a layer never falls back for speed.
bool sees_padding_alone(const Axis& a) {
  const int64_t reach = a.dilation * (a.kernel - 1);
  return a.pad > reach || (a.out - 1) * a.stride - a.pad >= a.in || (a.kernel > 1 && a.pad > 0 && a.dilation > a.in);
}

// Where the processor has AVX512-FP16, oneDNN in PyTorch 2.13 never ends compiling the kernels of some depthwise layers whose rows
// of taps are long and whose channels leave a vector of 32 unfilled or fill one. Which ones depends on the threads too.
bool never_compiles(const Request& r) {
  constexpr int64_t kLongRow = 12, kChannels = 32;
  const Problem& p = r.problem;
  return r.dtype == Dtype::float16 && r.direction == Direction::forward && depthwise(p) && p.groups > 1 &&
         p.groups <= kChannels && p.w.kernel >= kLongRow && p.w.stride == 1 && p.w.dilation == 1 && has_avx512_fp16();
}

// With AVX-512, oneDNN's gradient of a dense 1x1 weight with a stride, in channels_last, ends the process on larger images if the
// input channels do not fill its vectors of 16.
bool strided_pointwise_gradient(const Request& r) {
  const Problem& p = r.problem;
  const bool strided = p.h.kernel * p.w.kernel == 1 && std::max(p.h.stride, p.w.stride) > 1;
  return strided && r.channels_last && p.groups == 1 && p.in_channels % 16 != 0;
}

// With AVX-512, oneDNN's bfloat16 gradient of a weight with dilated rows of taps, in channels_last, is often wrong, and sometimes ends
// the process, if a row of outputs is longer than 28 and a group's input channels do not fill its vectors of 16. A dilation of one row
// of taps, which moves nothing, counts too.
bool dilated_rows_gradient(const Request& r) {
  const Problem& p = r.problem;
  return r.dtype == Dtype::bfloat16 && r.channels_last && p.h.dilation > 1 && p.h.stride == 1 && p.w.out > 28 &&
         p.in_channels % 16 != 0;
}

// Tells what PyTorch 2.13's kernel may do to the process, or returns null.
const char* hazard_of(const Request& r) {
  constexpr const char* kOutside = "PyTorch's kernel may read outside its tensors here";
  // oneDNN has no float64.
  if (r.dtype == Dtype::float64) return nullptr;
  if (never_compiles(r)) return "PyTorch's kernel may never end compiling here";
  const Problem& p = r.problem;
  for (const Axis& a : {r.depth.axis, p.h, p.w})
    if (sees_padding_alone(a)) return kOutside;
  // oneDNN's gradient of a weight in channels_last_3d is wrong, or ends the process, where the kernel is deeper than the input.
  const Axis& depth = r.depth.axis;
  if (r.direction == Direction::grad_weight && r.channels_last && depth.pad > 0 &&
      depth.dilation * (depth.kernel - 1) >= depth.in)
    return kOutside;
  if (r.direction != Direction::grad_weight || runnable_isas().back() != "avx512") return nullptr;
  if (dilated_rows_gradient(r)) return "PyTorch's kernel may compute wrong values here, or end the process";
  return strided_pointwise_gradient(r) ? kOutside : nullptr;
}

void choose(const Candidate& candidate, Plan* plan) {
  plan->kernel = candidate.kernel;
  plan->work = candidate.work;
  const Request& r = plan->request;
  if (plan->work->facts.threads < r.threads)
    plan->sharing = std::to_string(products_of(r)) + " products are too few for " + std::to_string(r.threads) +
                    " threads, which share work from " + json_number(shared_from(*r.target, r.threads), 15) + " on";
}

// Chooses among several kernels by what is known of their speeds.
void decide(const std::vector<Candidate>& candidates, Plan* plan) {
  const Judgement judgement = judge(plan->request, candidates);
  plan->source = judgement.source;
  const auto allowed = [&](size_t i) { return !candidates[i].kernel->by_norm || by_norm_allowed(); };
  const auto sure = [&](size_t i) { return allowed(i) && judgement.speedups[i].low >= judgement.least; };
  size_t best = 0;
  for (size_t i = 1; i < candidates.size(); i++) {
    if (!allowed(i)) continue;
    const bool faster = !allowed(best) || judgement.speedups[i].middle > judgement.speedups[best].middle;
    if (sure(i) != sure(best) ? sure(i) : faster) best = i;
  }
  const Speedup& first = judgement.speedups[best];
  const bool ours = sure(best) || (allowed(best) && !plan->safe);
  if (ours) {
    choose(candidates[best], plan);
    if (judgement.source != Source::order) plan->speedup = first.middle;
    plan->evidence = first.why;
  }
  for (size_t i = 0; i < candidates.size(); i++) {
    if (ours && i == best) continue;
    std::string why = judgement.speedups[i].why;
    if (!allowed(i)) why += "; its error is relative to the norm of its row, so it runs only if enable(fft=True) allows it";
    if (plan->speedup > 0) why += "; " + std::string(candidates[best].kernel->name) + " " + times(first.middle);
    plan->others.emplace_back(candidates[i].kernel->name, why);
  }
}

std::shared_ptr<const Plan> make(const Request& r, const std::string& forced) {
  auto plan = std::make_shared<Plan>();
  plan->request = r;
  std::vector<Candidate> candidates = candidates_of(r, &plan->refused);
  if (!forced.empty()) {
    plan->source = Source::forced;
    for (const Candidate& c : candidates) {
      if (forced == c.kernel->name) {
        choose(c, plan.get());
      } else {
        plan->refused.emplace_back(c.kernel->name, "another kernel was asked for");
      }
    }
    return plan;
  }
  if (candidates.empty()) return plan;
  plan->hazard = hazard_of(r);
  plan->safe = r.pytorch_right && !plan->hazard;
  const std::optional<Measured> measured = remembered(r);
  if (measured) plan->tries = measured->tries;
  plan->open = plan->tries < kMostTries && !left_out(candidates, measured).empty();
  decide(candidates, plan.get());
  plan->in_table = plan->open && (plan->source == Source::table || (measured && known_to_tables(r, candidates)));
  if (!plan->safe) plan->evidence = plan->hazard ? plan->hazard : "PyTorch's kernel is wrong here";
  return plan;
}

struct Key {
  Request request;
  std::string forced;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const { return RequestHash()(key.request) ^ std::hash<std::string>()(key.forced); }
};

using Plans = std::unordered_map<Key, std::shared_ptr<const Plan>, KeyHash>;

// Each thread has plans of its own, so that a planned call neither locks nor waits, and a fork inherits no locked table.
Plans& plans() {
  thread_local Plans plans;
  thread_local int64_t epoch = 0;
  if (epoch != policy_epoch() || plans.size() >= kMostPlans) plans.clear(), epoch = policy_epoch();
  return plans;
}

}  // namespace

std::vector<Candidate> candidates_of(const Request& r, std::vector<std::pair<const char*, std::string>>* refused) {
  std::vector<Candidate> candidates;
  const char* none = unfit(r);
  for (const KernelRow* kernel : kernel_table()) {
    if (!kernel->directions[static_cast<int>(r.direction)]) continue;
    const char* why = none;
    std::unique_ptr<Work> work;
    const bool copies = is_low(r.dtype) && kernel->computes != Computes::bfloat16;
    if (!why) work = copies ? lay_out_converted(*kernel, r, &why) : lay_out(*kernel, r, &why);
    if (work) {
      candidates.push_back({kernel, std::move(work)});
    } else {
      refused->emplace_back(kernel->name, why ? why : "its smallest block exceeds the scratch of a thread");
    }
  }
  return candidates;
}

std::vector<size_t> left_out(const std::vector<Candidate>& candidates, const std::optional<Measured>& measured) {
  std::vector<size_t> found;
  for (size_t i = 0; i < candidates.size(); i++) {
    const auto is_it = [&](const auto& timing) { return timing.first == candidates[i].kernel->name; };
    if (!measured || std::none_of(measured->timings.begin(), measured->timings.end(), is_it)) found.push_back(i);
  }
  return found;
}

std::shared_ptr<const Plan> plan_of(const Request& request, const std::string& forced) {
  Plans& kept = plans();
  const Key key{request, forced};
  const auto found = kept.find(key);
  if (found != kept.end()) return found->second;
  std::shared_ptr<const Plan> plan = make(request, forced);
  kept.emplace(key, plan);
  return plan;
}

std::shared_ptr<const Plan> plan_again(const Request& request) {
  plans().erase(Key{request, ""});
  return plan_of(request, "");
}

}  // namespace groupwise
