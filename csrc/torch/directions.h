// One direction of a convolution: planned, measured where that is asked for, and run by a kernel or left to PyTorch.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.h"
#include "torch/call.h"
#include "torch/tuning.h"

namespace groupwise {

// Plans one direction of the call. The tensors are those that it reads; the one that it writes is null.
std::shared_ptr<const Plan> decide(const Call& call, Direction direction, const at::Tensor* x, const at::Tensor* y,
                                   const at::Tensor& weight);

// Runs a forward, which reads x and returns y, or a grad_input, which reads y and returns x.
at::Tensor correlate(const Call& call, const Plan& plan, const at::Tensor& read, const at::Tensor& weight,
                     const at::Tensor& bias);

// Measures the kernels that can compute what was planned, if that was asked for and not done before, and plans anew.
// `ours(plan)` and `theirs()` compute it.
template <class Ours, class Theirs>
std::shared_ptr<const Plan> tuned(std::shared_ptr<const Plan> plan, Ours&& ours, Theirs&& theirs) {
  if (!plan->open || !tuning()) return plan;
  // PyTorch's kernel may end the process.
  if (!plan->safe) return plan;
  // Other threads would be measured too, and a choice by time is no deterministic one.
  if (at::in_parallel_region() || at::globalContext().deterministicAlgorithms()) return plan;
  const Request& request = plan->request;
  const std::optional<Measured> before = remembered(request);
  // Another thread may have measured it since.
  if ((before ? before->tries : 0) == plan->tries) {
    std::vector<Contender> contenders{{kPyTorch, theirs}};
    std::vector<std::pair<const char*, std::string>> refused;
    const std::vector<Candidate> candidates = candidates_of(request, &refused);
    // The budget may end before the last: those that are expected to be the fastest come first.
    const std::vector<Speedup> expected = judge(request, candidates).speedups;
    std::vector<size_t> order = left_out(candidates, before);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return expected[a].middle > expected[b].middle; });
    for (const size_t i : order) {
      Plan one = *plan;
      one.kernel = candidates[i].kernel;
      one.work = candidates[i].work;
      contenders.push_back({candidates[i].kernel->name, [&ours, one] { ours(one); }});
    }
    if (!measure(request, contenders, before.value_or(Measured{}))) return plan;
  }
  return plan_again(request);
}

// Computes by kernels those gradients of input, weight and bias that `left` asks for and that a kernel is planned for; `left`
// keeps what PyTorch is to compute. `theirs` computes wanted gradients by PyTorch, and is measured.
std::array<at::Tensor, 3> gradients(const Call& call, const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& weight, std::array<bool, 3>* left,
                                    const std::function<void(std::array<bool, 3>)>& theirs);

}  // namespace groupwise
