// Parts of a vector by the masks of AVX-512, which has vectors of 16 floats or 8 doubles. A vecN.h includes it after base.h.
#pragma once

#include <immintrin.h>

// The letter of a vector register in asm.
#define GW_REGISTER "v"
#ifdef GW_FLOAT64
#define GW_512(name) _mm512_##name##_pd
#else
#define GW_512(name) _mm512_##name##_ps
#endif

namespace groupwise::GW_TARGET {

// The vector registers, by which tiles have their sizes.
constexpr int kRegisters = 32;
// Tells whether a partial load or store is one instruction.
constexpr bool kMasks = true;

// A bit for each lane.
using Mask = std::conditional_t<kLanes == 16, __mmask16, __mmask8>;
static_assert(sizeof(Vec) == 64);

// Returns a mask of the first `count` lanes: none if count is negative, all if it is kLanes or more.
GW_INLINE Mask first_lanes(int64_t count) {
  return static_cast<Mask>(count >= kLanes ? (1u << kLanes) - 1 : count > 0 ? (1u << count) - 1 : 0);
}

// Stores, or loads, the first `count` lanes and touches no byte beyond them. A whole store is faster than a masked one of all
// lanes (the rows of depthwise 3x3 of stride 2 56x56, one thread: 0.051 ms instead of 0.071).
GW_INLINE void store_some(Real* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  GW_512(mask_storeu)(p, first_lanes(count), v);
}
GW_INLINE Vec load_some(const Real* p, int64_t count) { return GW_512(maskz_loadu)(first_lanes(count), p); }
// Loads lanes [first, last), and zeros, and touches no byte beside them.
GW_INLINE Vec load_between(const Real* p, int64_t first, int64_t last) {
  return GW_512(maskz_loadu)(static_cast<Mask>(first_lanes(last) & ~first_lanes(first)), p);
}

// Keeps the first `count` lanes and zeros the others, also where they are NaN, which a product with 0 would not.
GW_INLINE Vec keep(Vec v, int64_t count) { return GW_512(maskz_mov)(first_lanes(count), v); }

}  // namespace groupwise::GW_TARGET
