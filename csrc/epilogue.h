// What a layer computes of its sums before it is done with them: act_after(act_before(sum) + residual).
#pragma once

#include <cstdint>

namespace groupwise {

// The order is that of the names in csrc/torch/norm.cpp, which know the first nine, and in csrc/torch/layer.cpp.
enum class Activation { none, relu, relu6, leaky_relu, silu, hardswish, hardsigmoid, sigmoid, tanh, hardtanh, gelu, gelu_tanh };

// An activation and its numbers: the slope of leaky_relu, or the bounds of hardtanh.
struct Activate {
  Activation kind = Activation::none;
  float first = 0, second = 0;
  bool operator==(const Activate&) const = default;
};

// The residual has the strides of the output, and may be the output.
template <class Real>
struct EpilogueOf {
  Activate before;
  const Real* residual = nullptr;  // or null
  Activate after;
};
using Epilogue = EpilogueOf<float>;

}  // namespace groupwise
