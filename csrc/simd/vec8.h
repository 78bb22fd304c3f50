// Vectors of 8 numbers: of floats by AVX2, and of doubles by AVX-512.
#pragma once

#define GW_LANES 8
#include "simd/base.h"
#ifdef GW_FLOAT64
#include "simd/masked.h"
#else
// The letter of a vector register in asm, and how many there are.
#define GW_REGISTER "x"
#define GW_REGISTERS 16
#include "simd/partial.h"
#endif

namespace groupwise::GW_TARGET {

// Transposes in place.
GW_INLINE void transpose(Vec (&r)[8]) {
  Vec s[8];
  unroll<2>([&](auto half) GW_LAMBDA {
    constexpr int at = half * 4;
    const Vec t0 = __builtin_shufflevector(r[at], r[at + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec t1 = __builtin_shufflevector(r[at], r[at + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec t2 = __builtin_shufflevector(r[at + 2], r[at + 3], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec t3 = __builtin_shufflevector(r[at + 2], r[at + 3], 2, 10, 3, 11, 6, 14, 7, 15);
    s[at] = __builtin_shufflevector(t0, t2, 0, 1, 8, 9, 4, 5, 12, 13);
    s[at + 1] = __builtin_shufflevector(t0, t2, 2, 3, 10, 11, 6, 7, 14, 15);
    s[at + 2] = __builtin_shufflevector(t1, t3, 0, 1, 8, 9, 4, 5, 12, 13);
    s[at + 3] = __builtin_shufflevector(t1, t3, 2, 3, 10, 11, 6, 7, 14, 15);
  });
  unroll<4>([&](auto i) GW_LAMBDA {
    r[i] = __builtin_shufflevector(s[i], s[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(s[i], s[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  });
}

// Loads p[0], p[2], ... p[14], and no number beyond. It shuffles within the halves, then between them: two instructions, where
// a single shuffle takes three and a table.
GW_INLINE Vec load_even(const Real* p) {
  const Vec a = load(p), b = load(p + 7);
  const Vec t = __builtin_shufflevector(a, b, 0, 2, 9, 11, 4, 6, 13, 15);
  return __builtin_shufflevector(t, t, 0, 1, 4, 5, 2, 3, 6, 7);
}

// Returns the numbers of two vectors that follow each other: the first, third, ... of them, and the others.
GW_INLINE Pairs deal(Vec a, Vec b) {
  const Vec even = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  const Vec odd = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  return {__builtin_shufflevector(even, even, 0, 1, 4, 5, 2, 3, 6, 7),
          __builtin_shufflevector(odd, odd, 0, 1, 4, 5, 2, 3, 6, 7)};
}

// Returns the sum of the lanes of each of four vectors. It adds neighbours of two vectors in turn, then the halves.
GW_INLINE Four sum_lanes(const Vec (&v)[4]) {
  const auto add = [](Vec a, Vec b) GW_LAMBDA {
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  };
  const Vec s = add(add(v[0], v[1]), add(v[2], v[3]));
  return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
}

// Return the numbers of two vectors in turn, a0 b0 a1 b1 ...: the first half, and the second.
GW_INLINE Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
GW_INLINE Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

}  // namespace groupwise::GW_TARGET
