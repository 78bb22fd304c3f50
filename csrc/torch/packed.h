// Plans for a constant weight, which is brought into the order that the plan reads, and packed, once.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "plan/plan.h"
#include "torch/call.h"

namespace groupwise {

// Returns the plan of a request whose weight is `ordered` for it. `kernel` is the one that runs; "" leaves the choice.
std::shared_ptr<const Plan> plan_of_constant(const Request& request, const Call& call, const std::string& kernel);

// Returns the weight in the order that the plan's kernel reads. It depends on the call and the kernel alone.
at::Tensor ordered(const Plan& plan, const Call& call, const at::Tensor& weight);

// Returns an ordered weight as the plan's kernel packs it; undefined if it packs none.
at::Tensor packed(const Plan& plan, const at::Tensor& weight);

// Returns why a kernel, which is not "", or the planner does not run what was planned.
std::string why_not(const Plan& plan, const std::string& kernel);

}  // namespace groupwise
