// The operators groupwise::linear and groupwise::linear_backward. A linear layer is a 1x1 convolution of an image whose
// channels lie side by side: the kernels of those compute it where they are the fastest.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "binding/convolution-inl.h"
#include "torch/autograd.h"
#include "torch/exact.h"

namespace groupwise {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kForward = "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor";
constexpr const char* kBackward =
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool[3] wanted) -> (Tensor, Tensor, Tensor)";

void check(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() >= 2 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "groupwise: a linear layer must have inputs of as many numbers as its weight has columns");
}

// Returns the tensor as [samples, numbers, height, width].
Tensor image(const Tensor& t) {
  const int64_t last = t.dim() - 1, samples = last > 1 ? t.size(0) : 1, height = last > 2 ? t.size(1) : 1;
  return t.reshape({samples, height, t.numel() / (samples * height * t.size(last)), t.size(last)}).permute({0, 3, 1, 2});
}

// Returns what `image` was given, of which `like` has all sizes but the last.
Tensor back(const Tensor& image, const Tensor& like) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes.back() = image.size(1);
  return image.permute({0, 2, 3, 1}).reshape(sizes);
}

Tensor filters(const Tensor& weight) { return weight.unsqueeze(-1).unsqueeze(-1); }

// Tells whether a kernel may compute the layer.
bool may_run(const Tensor& x, const Tensor& weight) {
  return plain(x) && plain(weight) && x.size(-1) > 1 && weight.size(0) > 1;
}

// Returns the layer as a convolution of `image` by `filters`.
Convolution<Exact> convolution_of(const Tensor& input, const Tensor& weight) {
  static constexpr int64_t kOne[] = {1}, kNone[] = {0};
  return {input, weight, kOne, kNone, kOne, false, kNone, 1, true};
}

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check(x, weight);
  if (!may_run(x, weight)) return at::linear(x, weight, bias);
  const Tensor from = image(x), w = filters(weight);
  const Tensor to = convolution_of(from, w).forward(bias && bias->defined() ? &*bias : nullptr,
                                                    [&] { return image(at::linear(x, weight, bias)); });
  return back(to, x);
}

void check_backward(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  check(x, weight);
  check(grad, weight.t());
  TORCH_CHECK(grad.sizes().slice(0, grad.dim() - 1) == x.sizes().slice(0, x.dim() - 1),
              "groupwise: a gradient must have the sizes of the output");
}

// Returns the wanted gradients by PyTorch's operators.
std::array<Tensor, 3> composed(const Tensor& grad, const Tensor& x, const Tensor& weight, std::array<bool, 3> wanted) {
  const int64_t rows = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const auto flat = [&](const Tensor& t) { return t.reshape({rows, t.size(-1)}); };
  return {wanted[0] ? at::mm(flat(grad), weight).view(x.sizes()) : Tensor(),
          wanted[1] ? at::mm(flat(grad).t(), flat(x)) : Tensor(), wanted[2] ? flat(grad).sum(0) : Tensor()};
}

// Returns a gradient with the weight's strides, whoever computed it.
Tensor as_weight(const Tensor& gradient, const Tensor& weight) {
  const Tensor to = at::empty_like(weight);
  return to.strides() == gradient.strides() ? gradient : to.copy_(gradient);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                   std::array<bool, 3> wanted) {
  check_backward(grad, x, weight);
  if (!plain(grad) || !may_run(x, weight)) {
    const auto [first, second, third] = composed(grad, x, weight, wanted);
    return {first, wanted[1] ? as_weight(second, weight) : second, third};
  }
  const Tensor from = image(x), w = filters(weight);
  std::array<Tensor, 3> grads = convolution_of(from, w).backward(image(grad), wanted, [&](std::array<bool, 3> some) {
    std::array<Tensor, 3> theirs = composed(grad, x, weight, some);
    if (some[0]) theirs[0] = image(theirs[0]);
    if (some[1]) theirs[1] = filters(theirs[1]);
    return theirs;
  });
  if (wanted[0]) grads[0] = back(grads[0], x);
  if (wanted[1]) grads[1] = as_weight(grads[1].flatten(1), weight);
  return {grads[0], grads[1], grads[2]};
}

Tensor linear_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  if (differentiates(x) || differentiates(weight) || differentiates(bias)) {
    check(x, weight);
    return at::linear(x, weight, bias);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(linear)>("groupwise::linear", "");
  return op.call(x, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                            std::array<bool, 3> wanted) {
  if (differentiates(grad) || differentiates(x) || differentiates(weight)) {
    check_backward(grad, x, weight);
    const auto [first, second, third] = composed(grad, x, weight, wanted);
    return {first, second, third};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(linear_backward)>("groupwise::linear_backward", "");
  return op.call(grad, x, weight, wanted);
}

Tensor linear_meta(const Tensor& x, const Tensor& weight, const OptionalTensor&) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_meta(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                        std::array<bool, 3> wanted) {
  return {wanted[0] ? at::empty_symint(x.sym_sizes(), x.options()) : Tensor(), wanted[1] ? at::empty_like(weight) : Tensor(),
          wanted[2] ? at::empty_symint({weight.sym_size(0)}, grad.options()) : Tensor()};
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(groupwise::kForward, tags);
  m.def(groupwise::kBackward, tags);
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("linear", groupwise::linear);
  m.impl("linear_backward", groupwise::linear_backward);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("linear", groupwise::linear_meta);
  m.impl("linear_backward", groupwise::linear_backward_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("linear", groupwise::linear_autograd);
  m.impl("linear_backward", groupwise::linear_backward_autograd);
}
