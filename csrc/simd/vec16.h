// Vectors of 16 floats, by the intrinsics of AVX-512.
#pragma once

#define GW_LANES 16
#include "simd/base.h"
#include "simd/masked.h"

namespace groupwise::GW_TARGET {

// Transposes in place: 4 x 4 floats within the quarters of the vectors, then 4 x 4 quarters.
GW_INLINE void transpose(Vec (&r)[16]) {
  __m512 s[16];
  const auto low = [](__m512 a, __m512 b)
                       GW_LAMBDA { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  const auto high = [](__m512 a, __m512 b)
                        GW_LAMBDA { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  unroll<4>([&](auto quarter) GW_LAMBDA {
    constexpr int at = quarter * 4;
    const __m512 t0 = _mm512_unpacklo_ps(r[at], r[at + 1]), t1 = _mm512_unpackhi_ps(r[at], r[at + 1]);
    const __m512 t2 = _mm512_unpacklo_ps(r[at + 2], r[at + 3]), t3 = _mm512_unpackhi_ps(r[at + 2], r[at + 3]);
    s[at] = low(t0, t2);
    s[at + 1] = high(t0, t2);
    s[at + 2] = low(t1, t3);
    s[at + 3] = high(t1, t3);
  });
  unroll<4>([&](auto i) GW_LAMBDA {
    const __m512 a = _mm512_shuffle_f32x4(s[i], s[i + 4], 0x44), b = _mm512_shuffle_f32x4(s[i], s[i + 4], 0xee);
    const __m512 c = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0x44), d = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0xee);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  });
}

// Loads p[0], p[2], ... p[30], and no float beyond.
GW_INLINE Vec load_even(const float* p) {
  return __builtin_shufflevector(load(p), load(p + 15), 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Loads p[0], p[1], p[2] and p[3], each into four lanes.
GW_INLINE Vec load_four_times(const float* p) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(p)), lanes);
}

// Returns the floats of two vectors that follow each other: the first, third, ... of them, and the others.
GW_INLINE Pairs deal(Vec a, Vec b) {
  return {__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
          __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
}

// Returns the sum of the lanes of each of four vectors. It adds lanes until every quarter holds a sum of each vector, then the
// quarters.
GW_INLINE Four sum_lanes(const Vec (&v)[4]) {
  const __m512 ab = _mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]);
  const __m512 cd = _mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]);
  const __m512 all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}

// Return the floats of two vectors in turn, a0 b0 a1 b1 ...: the first half, and the second.
GW_INLINE Vec interleave_low(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
GW_INLINE Vec interleave_high(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

}  // namespace groupwise::GW_TARGET
