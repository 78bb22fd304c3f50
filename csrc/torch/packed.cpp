#include "torch/packed.h"

#include <ATen/ops/empty.h>

#include <string_view>
#include <utility>

#include "torch/pool.h"

namespace groupwise {

using at::Tensor;

namespace {

bool by_outputs(const Plan& plan) { return plan.name() == std::string_view("groups"); }

// Returns a copy of a weight in which the output channels of a group are neighbours, which is how `groups` packs them.
Tensor in_order_of_outputs(const Tensor& weight, const Call& call) {
  const Problem& p = call.problem;
  // The channels of the first dimension are the outputs, or the inputs if it is transposed.
  const Tensor blocks = weight.reshape({p.groups, p.out_channels, p.in_channels, p.h.kernel * p.w.kernel});
  const std::vector<int64_t> order = call.transposed ? std::vector<int64_t>{0, 3, 1, 2} : std::vector<int64_t>{0, 3, 2, 1};
  return blocks.permute(order).contiguous();
}

WeightStrides strides_by_outputs(const Call& call) {
  const Problem& p = call.problem;
  const int64_t out = call.transposed ? p.in_channels : p.out_channels, in = call.transposed ? p.out_channels : p.in_channels;
  WeightStrides s{p.h.kernel * p.w.kernel * in * out, 1, out, p.w.kernel * in * out, in * out};
  // A transposed weight is named as the forward convolution's, whose outputs are this one's inputs.
  if (call.transposed) std::swap(s.o, s.c);
  return s;
}

}  // namespace

std::shared_ptr<const Plan> plan_of_constant(const Request& request, const Call& call, const std::string& kernel) {
  const std::shared_ptr<const Plan> plan = plan_of(request, kernel);
  if (!plan->work || !by_outputs(*plan)) return plan;
  Request ordered = request;
  ordered.w_strides = strides_by_outputs(call);
  return plan_of(ordered, plan->name());
}

Tensor ordered(const Plan& plan, const Call& call, const Tensor& weight) {
  if (by_outputs(plan)) return in_order_of_outputs(weight, call);
  return depthwise(call.problem) ? weight.contiguous() : weight;
}

Tensor packed(const Plan& plan, const Tensor& weight) {
  const int64_t floats = plan.work->packed_floats();
  if (floats == 0) return {};
  Tensor made = at::empty({floats}, weight.options());
  plan.work->pack(weight.const_data_ptr<float>(), made.mutable_data_ptr<float>(), parallel_for);
  return made;
}

std::string why_not(const Plan& plan, const std::string& kernel) {
  if (kernel.empty()) return "the planner leaves it to PyTorch";
  for (const auto& [name, why] : plan.refused)
    if (name == kernel) return why;
  return "it computes other directions";
}

}  // namespace groupwise
