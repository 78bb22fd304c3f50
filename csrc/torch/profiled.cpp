#include "torch/profiled.h"

#include <string>
#include <utility>

namespace groupwise {

void Profiled::begin(at::StepCallbacks&& callbacks, std::string_view kernel, Direction direction, const Kernels& target,
                     Read read) {
  shown_.emplace(std::move(callbacks));
  if (shown_->needsInputs())
    for (const at::Tensor* t : read) values_.emplace_back(*t);
  std::string name = "groupwise::";
  name += kernel;
  if (direction != Direction::forward) name.append(" ").append(kDirectionNames[static_cast<int>(direction)]);
  name.append(" ").append(target.isa);
  shown_->before(name, c10::ArrayRef<const c10::IValue>(values_.data(), values_.size()));
}

}  // namespace groupwise
