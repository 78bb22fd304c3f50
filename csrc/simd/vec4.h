// Vectors of 4 numbers. GW_REGISTER is the letter of a vector register in asm, if a vector is one, and GW_REGISTERS the vectors
// that tiles count on. Without AVX, a vector of doubles is two registers.
#pragma once
#define GW_LANES 4
#if defined(GW_FLOAT64) && !defined(__AVX__)
#define GW_REGISTERS 16
#elif defined(__aarch64__)
#define GW_REGISTER "w"
#define GW_REGISTERS 32
#else
#define GW_REGISTER "x"
#define GW_REGISTERS 16
#endif
#include "simd/base.h"
#include "simd/partial.h"

namespace groupwise::GW_TARGET {

// Transposes in place.
GW_INLINE void transpose(Vec (&r)[4]) {
  const Vec t0 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), t1 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Vec t2 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), t3 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(t0, t2, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(t0, t2, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(t1, t3, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(t1, t3, 2, 3, 6, 7);
}

// Loads p[0], p[2], p[4] and p[6], and no number beyond.
GW_INLINE Vec load_even(const Real* p) { return load_even_four(p); }

// Returns the numbers of two vectors that follow each other: the first, third, ... of them, and the others.
GW_INLINE Pairs deal(Vec a, Vec b) {
  return {__builtin_shufflevector(a, b, 0, 2, 4, 6), __builtin_shufflevector(a, b, 1, 3, 5, 7)};
}

// Returns the sum of the lanes of each of four vectors.
GW_INLINE Four sum_lanes(const Vec (&v)[4]) {
  Vec r[4] = {v[0], v[1], v[2], v[3]};
  transpose(r);
  return (r[0] + r[1]) + (r[2] + r[3]);
}

// Return the numbers of two vectors in turn, a0 b0 a1 b1 ...: the first half, and the second.
GW_INLINE Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
GW_INLINE Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

}  // namespace groupwise::GW_TARGET
