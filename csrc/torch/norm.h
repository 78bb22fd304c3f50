// What the operators of a batch normalisation with an activation share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "kernels/norm/norm.h"

namespace groupwise {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// Which gradients are wanted: of x, weight, bias and residual.
using Wanted = std::array<bool, 4>;

inline Activation activation_of(std::string_view name) {
  constexpr std::string_view kNames[kActivations] = {"none",      "relu",        "relu6",   "leaky_relu", "silu",
                                                     "hardswish", "hardsigmoid", "sigmoid", "tanh"};
  for (int i = 0; i < kActivations; i++)
    if (kNames[i] == name) return static_cast<Activation>(i);
  TORCH_CHECK(false, "groupwise: activation '", std::string(name), "' is not known");
}

// Tells whether an activation computes an exponential.
inline bool costly(Activation a) { return a == Activation::silu || a == Activation::sigmoid || a == Activation::tanh; }

inline void check(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.layout() == at::kStrided && t.device().is_cpu(), "groupwise: ", name,
              " must be a float32 tensor on the CPU");
}

// Returns a vector of one number a channel, or an undefined tensor.
inline Tensor channel_vector(const OptionalTensor& t, const Tensor& x, const char* name) {
  if (!t || !t->defined()) return {};
  check(*t, name);
  TORCH_CHECK(t->dim() == 1 && t->size(0) == x.size(1), "groupwise: ", name, " must have one number a channel");
  return t->contiguous();
}

inline Tensor like(const Tensor& t, const Tensor& x, const char* name) {
  check(t, name);
  TORCH_CHECK(t.sizes() == x.sizes(), "groupwise: ", name, " must have the shape of x");
  return t.contiguous(x.suggest_memory_format());
}

inline const float* read(const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }
inline float* written(const Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; }

// PyTorch's batch_norm returns the memory format that its input suggests.
inline Tensor new_like(const Tensor& x) { return at::empty_like(x, x.options(), x.suggest_memory_format()); }
inline Tensor new_vector(const Tensor& x) { return at::empty_symint({x.sym_size(1)}, x.options()); }

// Returns the normalisation of x without its tensors.
inline Norm norm_of(const Tensor& x, Activation activation, double slope) {
  check(x, "x");
  TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "groupwise: x must have samples, channels and at least one number");
  Norm n;
  const int64_t samples = x.size(0), channels = x.size(1), pixels = x.numel() / samples / channels;
  const bool last = x.suggest_memory_format() != at::MemoryFormat::Contiguous;
  // One channel is one plane in either format.
  n.shape =
      channels == 1 ? NormShape{1, 1, samples * pixels, false} : NormShape{samples, channels, pixels, last || pixels == 1};
  n.split = split_of(n.shape);
  n.activation = activation;
  n.slope = static_cast<float>(slope);
  return n;
}

// What batch_norm_act_backward computes, by operators whose gradients PyTorch knows. Mean and variance depend on x, so that they are
// computed again from it.
Grads differentiable_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                              const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                              Activation activation, double slope, Wanted wanted);

}  // namespace groupwise
