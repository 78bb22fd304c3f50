// The operators groupwise::gelu and groupwise::gelu_backward, for float32 on the CPU. The first knows its gradient, which the second
// computes; the gradients of that are PyTorch's.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <string_view>

#include "kernels/gelu/gelu.h"
#include "torch/autograd.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using at::Tensor;

constexpr const char* kForward = "gelu(Tensor x, str approximate) -> Tensor";
constexpr const char* kBackward = "gelu_backward(Tensor grad, Tensor x, str approximate) -> Tensor";

bool is_tanh(std::string_view approximate) {
  TORCH_CHECK(approximate == "none" || approximate == "tanh", "groupwise: approximate must be 'none' or 'tanh', not '",
              std::string(approximate), "'");
  return approximate == "tanh";
}

void check(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.layout() == at::kStrided && t.device().is_cpu(), "groupwise: ", name,
              " must be a float32 tensor on the CPU");
}

// Returns the tensor with all its numbers side by side: itself, if they are.
Tensor dense(const Tensor& t) { return t.is_non_overlapping_and_dense() ? t : at::empty_like(t).copy_(t); }

// Returns the gradient with the strides of x.
Tensor like(const Tensor& grad, const Tensor& x) {
  check(grad, "grad");
  TORCH_CHECK(grad.sizes() == x.sizes(), "groupwise: grad must have the shape of x");
  return grad.strides() == x.strides() ? grad : at::empty_like(x).copy_(grad);
}

void compute(const Tensor& x, const Tensor& grad, const Tensor& y, bool tanh) {
  gelu({x.numel(), tanh, x.const_data_ptr<float>(), grad.defined() ? grad.const_data_ptr<float>() : nullptr,
        y.mutable_data_ptr<float>()},
       {threads_here(), parallel_for});
}

Tensor forward(const Tensor& given, std::string_view approximate) {
  check(given, "x");
  const Tensor x = dense(given), y = at::empty_like(x);
  compute(x, {}, y, is_tanh(approximate));
  return y;
}

// The result takes the memory of the gradient given, if that is `spent`.
Tensor backward_from(const Tensor& grad, bool spent, const Tensor& given, std::string_view approximate) {
  check(given, "x");
  const Tensor x = dense(given), from = like(grad, x);
  const Tensor made = spent || !from.is_same(grad) ? from : at::empty_like(x);
  compute(x, from, made, is_tanh(approximate));
  return made;
}

Tensor backward(const Tensor& grad, const Tensor& x, std::string_view approximate) {
  return backward_from(grad, false, x, approximate);
}

Tensor forward_meta(const Tensor& x, std::string_view) { return at::empty_like(x); }

Tensor backward_meta(const Tensor&, const Tensor& x, std::string_view) { return at::empty_like(x); }

class GeluFunction : public torch::autograd::Function<GeluFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, std::string approximate) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(groupwise::forward)>("groupwise::gelu", "");
    context->save_for_backward({x});
    context->saved_data["approximate"] = approximate;
    return op.call(x, approximate);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const Tensor x = context->get_saved_variables()[0];
    const std::string approximate = context->saved_data.at("approximate").toStringRef();
    // The operator's schema promises that it changes nothing, so that this is not a call of it.
    if (is_spent(grads[0]) && !at::isTensorSubclassLike(x)) {
      RECORD_FUNCTION("groupwise::gelu_backward", c10::ArrayRef<const c10::IValue>{});
      const at::AutoDispatchBelowADInplaceOrView below;
      return {backward_from(grads[0], true, x, approximate), Tensor()};
    }
    static const auto op = operator_named<decltype(groupwise::backward)>("groupwise::gelu_backward", "");
    return {op.call(grads[0], x, approximate), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& x, std::string_view approximate) {
  if (at::GradMode::is_enabled() && x.requires_grad()) return GeluFunction::apply(x, std::string(approximate));
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward)>("groupwise::gelu", "");
  return op.call(x, approximate);
}

Tensor backward_autograd(const Tensor& grad, const Tensor& x, std::string_view approximate) {
  if (at::GradMode::is_enabled() && (grad.requires_grad() || x.requires_grad())) {
    check(x, "x");
    return at::gelu_backward(like(grad, x), x, is_tanh(approximate) ? "tanh" : "none");
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(backward)>("groupwise::gelu_backward", "");
  return op.call(grad, x, approximate);
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  m.def(groupwise::kForward, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  m.def(groupwise::kBackward, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("gelu", &groupwise::forward);
  m.impl("gelu_backward", &groupwise::backward);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("gelu", &groupwise::forward_meta);
  m.impl("gelu_backward", &groupwise::backward_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("gelu", &groupwise::forward_autograd);
  m.impl("gelu_backward", &groupwise::backward_autograd);
}
