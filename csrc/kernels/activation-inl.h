// Activations and their derivatives, by vectors. NaN stays NaN, and 0 times an infinite gradient is 0 where PyTorch's is.
#pragma once
#include "epilogue.h"
#include "kernels/clamp-inl.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

GW_INLINE Ints bits_of(Vec v) {
  Ints bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
GW_INLINE Vec float_of(Ints bits) {
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// Returns sum[k] * r**k of constants.
template <int N>
GW_INLINE Vec polynomial(Vec r, const float (&c)[N]) {
  Vec sum = broadcast(c[N - 1]);
  unroll<N - 1>([&](auto i) GW_LAMBDA { sum = sum * r + broadcast(c[N - 2 - i]); });
  return sum;
}

// Returns e to the power of x with an error of at most 1.5 ulp, also where that is subnormal. x = n log 2 + r, |r| <= log(2) / 2, and
// e**r is a polynomial with the least relative error (Remez).
GW_INLINE Vec exponential(Vec x) {
  x = at_least(at_most(x, 89.0f), -105.0f);
  // Adding 1.5 * 2**23 rounds to an integer, which the last bits of the sum hold.
  const Vec magic = broadcast(12582912.0f), rounded = x * broadcast(1.44269504f) + magic, n = rounded - magic;
  // log 2 in two parts. n times the first is exact.
  const Vec r = x - n * broadcast(0.693359375f) - n * broadcast(-2.12194440e-4f);
  const Vec tail = polynomial(
      r, {0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f, 0.00836874544620514f, 0.0013814540579915047f});
  const Vec power = r * r * tail + r + broadcast(1.0f);
  // 2**n may be no float where the result is one, but two factors are.
  const Ints whole = bits_of(rounded) - bits_of(magic), half = whole >> 1;
  return power * float_of((half + 127) << 23) * float_of((whole - half + 127) << 23);
}

GW_INLINE Vec logistic(Vec x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(-x)); }

// Near 0, where 1 - 2 / (e**2x + 1) cancels, it is an odd polynomial.
GW_INLINE Vec hyperbolic_tangent(Vec x) {
  const Ints sign = bits_of(x) & bits_of(broadcast(-0.0f));
  const Vec size = float_of(bits_of(x) ^ sign), square = x * x;
  const Vec near = x + x * square *
                           polynomial(square, {-0.333333283662796f, 0.13333158195018768f, -0.05394056439399719f,
                                               0.021666347980499268f, -0.008091969415545464f, 0.002064666012302041f});
  const Vec far = broadcast(1.0f) - broadcast(2.0f) / (exponential(size + size) + broadcast(1.0f));
  return size < broadcast(0.625f) ? near : float_of(bits_of(far) | sign);
}

// Returns x times the probability that a normal deviate is below it. That of the tail is e**(-x**2 / 2) times a polynomial of
// 1 / (1 + 0.35 |x|), so that it does not cancel; near 0, an odd polynomial of x rounds less.
GW_INLINE Vec gelu(Vec x) {
  const Vec square = x * x, size = float_of(bits_of(x) & 0x7fffffff);
  const Vec near = broadcast(0.5f) + x * polynomial(square, {0.3989422917366028f, -0.0664902999997139f, 0.009972365573048592f,
                                                             -0.0011813320452347398f, 0.00010298217966919765f});
  const Vec t = broadcast(1.0f) / (broadcast(1.0f) + size * broadcast(0.35f));
  const Vec tail = exponential(square * broadcast(-0.5f)) *
                   (t * polynomial(t, {0.139621302485466f, 0.13986355066299438f, 0.11982106417417526f, 0.10555345565080643f,
                                       -0.02321472205221653f, 0.1593232899904251f, -0.25584226846694946f, 0.1440325528383255f,
                                       -0.029158229008316994f}));
  const Vec far = x < Vec{} ? tail : broadcast(1.0f) - tail;
  return x * (size < broadcast(0.7f) ? near : far);
}

// Returns the activation of z. `first` and `second` are its numbers.
template <Activation A>
GW_INLINE Vec activate(Vec z, float first, float second = 0) {
  if constexpr (A == Activation::relu) return at_least(z, 0.0f);
  if constexpr (A == Activation::relu6) return at_most(at_least(z, 0.0f), 6.0f);
  if constexpr (A == Activation::leaky_relu) return z > Vec{} ? z : z * broadcast(first);
  if constexpr (A == Activation::hardtanh) return at_most(at_least(z, first), second);
  if constexpr (A == Activation::gelu) return gelu(z);
  // 1 + tanh(u) is 2 / (1 + e**-2u), which does not cancel; 1.595... is 2 sqrt(2 / pi).
  if constexpr (A == Activation::gelu_tanh)
    return z / (broadcast(1.0f) + exponential((z + z * z * z * 0.044715f) * -1.5957691216f));
  if constexpr (A == Activation::silu) return z / (broadcast(1.0f) + exponential(-z));
  if constexpr (A == Activation::hardswish) return z * at_most(at_least(z + 3.0f, 0.0f), 6.0f) / 6.0f;
  if constexpr (A == Activation::hardsigmoid) return at_most(at_least(z + 3.0f, 0.0f), 6.0f) / 6.0f;
  if constexpr (A == Activation::sigmoid) return logistic(z);
  if constexpr (A == Activation::tanh) return hyperbolic_tangent(z);
  return z;
}

// Returns the gradient behind the activation of z from that of its output.
template <Activation A>
GW_INLINE Vec pass(Vec grad, Vec z, float slope) {
  if constexpr (A == Activation::relu) return z <= Vec{} ? Vec{} : grad;
  if constexpr (A == Activation::relu6) return z <= Vec{} ? Vec{} : z >= broadcast(6.0f) ? Vec{} : grad;
  if constexpr (A == Activation::leaky_relu) return z > Vec{} ? grad : grad * broadcast(slope);
  if constexpr (A == Activation::silu) {
    const Vec s = logistic(z);
    return grad * (s * (broadcast(1.0f) + z * (broadcast(1.0f) - s)));
  }
  if constexpr (A == Activation::hardswish) {
    const Vec sloped = z >= broadcast(3.0f) ? grad : grad * (z / 3.0f + 0.5f);
    return z <= broadcast(-3.0f) ? Vec{} : sloped;
  }
  if constexpr (A == Activation::hardsigmoid) {
    const Vec sloped = z < broadcast(3.0f) ? grad / 6.0f : Vec{};
    return z > broadcast(-3.0f) ? sloped : Vec{};
  }
  if constexpr (A == Activation::sigmoid) {
    const Vec s = logistic(z);
    return grad * (s * (broadcast(1.0f) - s));
  }
  if constexpr (A == Activation::tanh) {
    const Vec t = hyperbolic_tangent(z);
    return grad * (broadcast(1.0f) - t * t);
  }
  return grad;
}

// The same from the activation's result, for those that `kept_with_residual` names.
template <Activation A>
GW_INLINE Vec pass_of_output(Vec grad, Vec y, float slope) {
  if constexpr (A == Activation::sigmoid) return grad * (y * (broadcast(1.0f) - y));
  if constexpr (A == Activation::tanh) return grad * (broadcast(1.0f) - y * y);
  return pass<A>(grad, y, slope);
}

// Calls f with an activation of batch normalisation as a constant.
template <class F>
GW_INLINE void with(Activation activation, F&& f) {
  const auto call = [&]<Activation A>() GW_LAMBDA { f(std::integral_constant<Activation, A>{}); };
  switch (activation) {
    case Activation::none: return call.template operator()<Activation::none>();
    case Activation::relu: return call.template operator()<Activation::relu>();
    case Activation::relu6: return call.template operator()<Activation::relu6>();
    case Activation::leaky_relu: return call.template operator()<Activation::leaky_relu>();
    case Activation::silu: return call.template operator()<Activation::silu>();
    case Activation::hardswish: return call.template operator()<Activation::hardswish>();
    case Activation::hardsigmoid: return call.template operator()<Activation::hardsigmoid>();
    case Activation::sigmoid: return call.template operator()<Activation::sigmoid>();
    case Activation::tanh: return call.template operator()<Activation::tanh>();
    default: return;
  }
}

// Calls f with any activation as a constant.
template <class F>
GW_INLINE void with_any(Activation activation, F&& f) {
  switch (activation) {
    case Activation::hardtanh: return f(std::integral_constant<Activation, Activation::hardtanh>{});
    case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh: return f(std::integral_constant<Activation, Activation::gelu_tanh>{});
    default: return with(activation, f);
  }
}

}  // namespace groupwise::GW_TARGET
