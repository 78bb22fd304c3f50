// The operator groupwise::gelu: PyTorch's GELU, whose gradient takes the place of the gradient that it is given where nothing else
// holds that. All else, gradients of gradients and forward-mode ones too, is PyTorch's.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <string_view>

#include "torch/autograd.h"

namespace groupwise {
namespace {

using at::Tensor;

constexpr const char* kSchema = "gelu(Tensor x, str approximate) -> Tensor";

class GeluFunction : public torch::autograd::Function<GeluFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, std::string approximate) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x});
    context->saved_data["approximate"] = approximate;
    return at::gelu(x, approximate);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const Tensor x = context->get_saved_variables()[0];
    const std::string approximate = context->saved_data.at("approximate").toStringRef();
    if (!is_spent(grads[0]) || at::isTensorSubclassLike(x) || grads[0].strides() != x.strides())
      return {at::gelu_backward(grads[0], x, approximate), Tensor()};
    RECORD_FUNCTION("groupwise::gelu_backward", c10::ArrayRef<const c10::IValue>{});
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor made = grads[0];
    at::gelu_backward_out(made, grads[0], x, approximate);
    return {made, Tensor()};
  }
};

Tensor gelu(const Tensor& x, std::string_view approximate) {
  const bool known = x.scalar_type() == at::kFloat && x.device().is_cpu() && !at::isTensorSubclassLike(x);
  if (known && at::GradMode::is_enabled() && x.requires_grad() && !x._fw_grad(0).defined())
    return GeluFunction::apply(x, std::string(approximate));
  return at::gelu(x, approximate);
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) { m.def(groupwise::kSchema, {at::Tag::pt2_compliant_tag}); }
TORCH_LIBRARY_IMPL(groupwise, CompositeImplicitAutograd, m) { m.impl("gelu", &groupwise::gelu); }
