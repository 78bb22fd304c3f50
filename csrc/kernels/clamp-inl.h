// Bounds of outputs: the activations that a kernel applies as it stores them.
#pragma once
#include "epilogue.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// A comparison with NaN is false, so these return a NaN of v.
GW_INLINE Vec at_least(Vec v, Real least) { return v < broadcast(least) ? broadcast(least) : v; }
GW_INLINE Vec at_most(Vec v, Real most) { return v > broadcast(most) ? broadcast(most) : v; }

// Bounds that a kernel keeps its outputs within as it stores them. Those of no activation let all pass, NaN too.
struct Clamp {
  Real least = -__builtin_inf(), most = __builtin_inf();

  // Tells whether an output can be beyond them. A kernel asks once: bounds take the ports of its products.
  bool bounds() const { return least > -Real(__builtin_inf()) || most < Real(__builtin_inf()); }
};
GW_INLINE Vec clamped(Vec z, const Clamp& c) { return at_most(at_least(z, c.least), c.most); }

// Tells whether an activation, or none, is a clamp, and which.
inline bool is_clamp(const Activate& a, Clamp* clamp) {
  *clamp = {};
  switch (a.kind) {
    case Activation::none: return true;
    case Activation::relu: return clamp->least = 0, true;
    case Activation::relu6: return *clamp = {0, 6}, true;
    case Activation::hardtanh: return *clamp = {Real{a.first}, Real{a.second}}, true;
    default: return false;
  }
}

// The same of an epilogue, or none.
inline bool is_clamp(const EpilogueOf<Real>* e, Clamp* clamp) {
  *clamp = {};
  return !e || (!e->residual && e->after.kind == Activation::none && is_clamp(e->before, clamp));
}

}  // namespace groupwise::GW_TARGET
