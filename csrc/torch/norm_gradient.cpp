// The gradient of a batch normalisation with an activation, composed of PyTorch's operators, which know their own gradients.
#include <ATen/TensorOperators.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/var.h>

#include "torch/norm.h"

namespace groupwise {
namespace {

// Returns the gradient behind the activation of z, or of `result` where that is what was kept.
Tensor passed_by(Activation activation, const Tensor& grad, const Tensor& z, const Tensor& result, double slope) {
  const Tensor& either = result.defined() ? result : z;
  switch (activation) {
    case Activation::none: return grad;
    case Activation::relu: return at::threshold_backward(grad, either, 0);
    case Activation::relu6: return at::hardtanh_backward(grad, either, 0, 6);
    case Activation::leaky_relu: return at::leaky_relu_backward(grad, either, slope, false);
    case Activation::silu: {
      const Tensor s = at::sigmoid(z);
      return grad * s * (1 + z * (1 - s));
    }
    case Activation::hardswish: return at::hardswish_backward(grad, z);
    // PyTorch knows no gradient of its hardsigmoid_backward.
    case Activation::hardsigmoid: return at::hardtanh_backward(grad / 6, z, -3, 3);
    case Activation::sigmoid: return at::sigmoid_backward(grad, result.defined() ? result : at::sigmoid(z));
    case Activation::tanh: return at::tanh_backward(grad, result.defined() ? result : at::tanh(z));
    // These are of inference alone, and `activation_of` knows no name of theirs.
    case Activation::hardtanh:
    case Activation::gelu:
    case Activation::gelu_tanh: break;
  }
  return {};
}

}  // namespace

Grads differentiable_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                              const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                              Activation activation, double slope, Wanted wanted) {
  std::vector<int64_t> others{0}, one_a_channel(x.dim(), 1);
  for (int64_t i = 2; i < x.dim(); i++) others.push_back(i);
  one_a_channel[1] = -1;
  const auto spread = [&](const Tensor& t) { return t.view(one_a_channel); };
  const Tensor middle = training ? x.mean(others, true) : spread(mean);
  const Tensor width = training ? at::var(x, others, std::optional<at::Scalar>(0), true) : spread(variance);
  const Tensor rstd = (width + eps).rsqrt(), normal = (x - middle) * rstd;
  Tensor z = weight && weight->defined() ? normal * spread(*weight) : normal;
  if (bias && bias->defined()) z = z + spread(*bias);
  Tensor result;
  if (kept && kept->defined()) {
    if (kept_with_residual(activation, static_cast<float>(slope)) == Kept::output) {
      result = *kept;
    } else {
      z = z + *kept;
    }
  }
  const Tensor g = passed_by(activation, grad, z, result, slope), product = g * normal;
  Grads grads;
  if (wanted[0]) {
    const Tensor scale = weight && weight->defined() ? rstd * spread(*weight) : rstd;
    std::get<0>(grads) = (training ? g - g.mean(others, true) - normal * product.mean(others, true) : g) * scale;
  }
  if (wanted[1]) std::get<1>(grads) = product.sum(others);
  if (wanted[2]) std::get<2>(grads) = g.sum(others);
  if (wanted[3]) std::get<3>(grads) = g;
  return grads;
}

}  // namespace groupwise
