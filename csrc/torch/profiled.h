// Shows kernels in torch.profiler: by name, with the shapes of the tensors that they read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>

#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "plan/plan.h"

namespace groupwise {

// While it lives, a profile shows that this runs: "groupwise::planar avx2", or "groupwise::planar grad_weight avx2" for a gradient.
// Costs one load where nothing profiles.
class Profiled {
 public:
  // An undefined tensor keeps its place among the shapes.
  using Read = std::initializer_list<const at::Tensor*>;

  Profiled(const Plan& plan, Read read) {
    if (auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION)) [[unlikely]]
      begin(std::move(*callbacks), plan.name(), plan.request.direction, *plan.request.target, read);
  }
  Profiled(std::string_view kernel, const Kernels& target, Read read) {
    if (auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION)) [[unlikely]]
      begin(std::move(*callbacks), kernel, Direction::forward, target, read);
  }

 private:
  void begin(at::StepCallbacks&& callbacks, std::string_view kernel, Direction direction, const Kernels& target, Read read);

  // The recording refers to the values.
  std::vector<c10::IValue> values_;
  std::optional<at::RecordFunction> shown_;
};

}  // namespace groupwise
