// The sweep of GELU, and of its gradient.
#pragma once
#include "kernels/activation-inl.h"
#include "kernels/gelu/gelu.h"
#include "simd/prefetch.h"

namespace groupwise::GW_TARGET {

// Calls f(offset, width) for the vectors of numbers [range.first, range.last); the width of whole ones is a constant.
template <class F>
GW_INLINE void each_number(Range range, F&& f) {
  int64_t i = range.first;
  for (; i + kLanes <= range.last; i += kLanes) f(i, std::integral_constant<int64_t, kLanes>{});
  if (i < range.last) f(i, range.last - i);
}

void gelu_sweep(const Gelu& work, Range range) {
  // The compiler must take it that a store changes `work`, and keeps a copy in registers.
  const Gelu g = work;
  const auto sweep = [&](auto activation) GW_LAMBDA {
    if (g.grad) {
      each_number(range, [&](int64_t i, auto width) GW_LAMBDA {
        prefetch(g.x + i + kAhead);
        prefetch(g.grad + i + kAhead);
        prefetch(g.y + i + kAhead);
        const Vec grad = load_some(g.grad + i, width);
        store_some(g.y + i, grad * slope_of<activation()>(load_some(g.x + i, width)), width);
      });
    } else {
      each_number(range, [&](int64_t i, auto width) GW_LAMBDA {
        prefetch(g.x + i + kAhead);
        prefetch(g.y + i + kAhead);
        store_some(g.y + i, activate<activation()>(load_some(g.x + i, width), 0.0f), width);
      });
    }
  };
  if (g.tanh) {
    sweep(std::integral_constant<Activation, Activation::gelu_tanh>{});
  } else {
    sweep(std::integral_constant<Activation, Activation::gelu>{});
  }
}

}  // namespace groupwise::GW_TARGET
