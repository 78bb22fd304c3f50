// What operators share: those that PyTorch's operators differentiate where a gradient is wanted, and those that know their own.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include <initializer_list>
#include <optional>

namespace groupwise {

inline bool differentiates(const std::optional<at::Tensor>& t) {
  return t && t->defined() && ((at::GradMode::is_enabled() && t->requires_grad()) || t->_fw_grad(0).defined());
}

// Refuses a gradient through a result that is given.
inline void check_no_gradient(const char* name, std::initializer_list<std::optional<at::Tensor>> tensors) {
  for (const auto& t : tensors)
    TORCH_CHECK(!differentiates(t), "groupwise: ", name,
                " with out= has no gradient: leave out=, or compute under torch.no_grad()");
}

// Returns the operator of this signature.
template <class F>
auto operator_named(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<F>();
}

// Tells whether nothing else holds a gradient that a node of the graph was given, nor its memory.
inline bool is_spent(const at::Tensor& grad) {
  return !at::GradMode::is_enabled() && grad.use_count() == 1 && !at::isTensorSubclassLike(grad) && !grad.is_neg() &&
         !grad._fw_grad(0).defined() && grad.storage().use_count() == 1 && grad.storage().resizable();
}

// Counts a write below autograd, as PyTorch's own operators do.
inline void count_write(const at::Tensor& out) {
  if (!out.is_inference()) torch::autograd::impl::bump_version(out);
}

}  // namespace groupwise
