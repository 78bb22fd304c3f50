#include "torch/profiled.h"

#include <utility>

namespace groupwise {

void Profiled::begin(at::StepCallbacks&& callbacks, std::string_view kernel, Direction direction, const Kernels& target,
                     Read read) {
  shown_.emplace(std::move(callbacks));
  if (shown_->needsInputs())
    for (const at::Tensor* t : read) values_.emplace_back(*t);
  shown_->before(profile_name(kernel, direction, target), c10::ArrayRef<const c10::IValue>(values_.data(), values_.size()));
}

}  // namespace groupwise
