// Loads that repeat floats over the lanes. Intel's load ports do so, while a shuffle of what is in a register takes one of the
// two ports that multiply vectors of 16.
#pragma once

#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Loads p[0], p[0], p[2], p[2], ..., or p[1], p[1], p[3], p[3], ... . The instruction is fixed, because a compiler that meets
// both loads the floats once, and shuffles them.
GW_INLINE Vec load_even_twice(const float* p) {
#if GW_LANES == 16
  Vec v;
  asm("vmovsldup %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const float (*)[kLanes]>(p)));
  return v;
#else
  return spread([](int lane) { return lane / 2 * 2; }, load(p), load(p));
#endif
}
GW_INLINE Vec load_odd_twice(const float* p) {
#if GW_LANES == 16
  Vec v;
  asm("vmovshdup %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const float (*)[kLanes]>(p)));
  return v;
#else
  return spread([](int lane) { return lane / 2 * 2 + 1; }, load(p), load(p));
#endif
}

// Loads p[0], p[1], p[0], p[1], ... .
GW_INLINE Vec load_pair(const float* p) {
  typedef int64_t Both __attribute__((vector_size(kLanes * 4)));
  int64_t both;
  std::memcpy(&both, p, sizeof both);
  const Both pairs = both + Both{};
  Vec v;
  std::memcpy(&v, &pairs, sizeof v);
  return v;
}

}  // namespace groupwise::GW_TARGET
