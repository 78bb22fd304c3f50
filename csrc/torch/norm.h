// What the operators of a batch normalisation with an activation share.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "kernels/norm/norm.h"

namespace groupwise {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// Which gradients are wanted: of x, weight, bias and residual.
using Wanted = std::array<bool, 4>;

// What batch_norm_act_backward computes, by operators whose gradients PyTorch knows. Mean and variance depend on x, so that they are
// computed again from it.
Grads differentiable_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                              const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                              Activation activation, double slope, Wanted wanted);

}  // namespace groupwise
