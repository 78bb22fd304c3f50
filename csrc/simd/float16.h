// Loads and stores of IEEE half-precision numbers as vectors of floats. Without AVX-512 or F16C they are made of integer
// operations, which every instruction set has, and read no subnormal float, so that a processor that flushes those computes the same.
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "simd/low.h"

namespace groupwise {

struct Float16 {
  uint16_t bits;
};

}  // namespace groupwise

namespace groupwise::GW_TARGET {

// The instructions of AVX-512 and F16C read and write subnormal halves as they are, also where the processor flushes subnormal floats.
#if GW_LANES == 16

GW_INLINE Vec load(const Float16* p) {
  __m256i halves;
  std::memcpy(&halves, p, sizeof halves);
  const __m512 floats = _mm512_cvtph_ps(halves);
  Vec v;
  std::memcpy(&v, &floats, sizeof v);
  return v;
}

GW_INLINE void store(Float16* p, Vec v) {
  __m512 floats;
  std::memcpy(&floats, &v, sizeof v);
  const __m256i halves = _mm512_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &halves, sizeof halves);
}

#elif GW_LANES == 8 && defined(__F16C__)

GW_INLINE Vec load(const Float16* p) {
  __m128i halves;
  std::memcpy(&halves, p, sizeof halves);
  const __m256 floats = _mm256_cvtph_ps(halves);
  Vec v;
  std::memcpy(&v, &floats, sizeof v);
  return v;
}

GW_INLINE void store(Float16* p, Vec v) {
  __m256 floats;
  std::memcpy(&floats, &v, sizeof v);
  const __m128i halves = _mm256_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &halves, sizeof halves);
}

#else

GW_INLINE Vec floats_of(Words words) {
  Vec v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}

GW_INLINE Vec load(const Float16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words), size = words & 0x7fff;
  typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
  // Below the smallest exponent the fraction counts units of 2**-24.
  const Words small = words_of(__builtin_convertvector(__builtin_convertvector(size, Ints), Vec) * 0x1p-24f);
  // The exponents differ by 112, and those of infinities and NaNs by as much again. A signalling NaN becomes a quiet one.
  const Words normal = (size << 13) + (112u << 23);
  const Words special = (size << 13) | (size > Words{} + 0x7c00 ? Words{} + 0x7fc00000 : Words{} + 0x7f800000);
  const Words large = size >= Words{} + 0x7c00 ? special : normal;
  return floats_of((size < Words{} + 0x400 ? small : large) | (words & 0x8000) << 16);
}

// Rounds to the nearest, and to the even one of two; a NaN stays a NaN.
GW_INLINE void store(Float16* p, Vec v) {
  const Words words = words_of(v), size = words & 0x7fffffff;
  const Words normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  // A sum with 0.5 has the units of a half's subnormals, and rounds to them. Floats that are themselves subnormal add nothing.
  const Words small = words_of(floats_of(size) + 0.5f) - 0x3f000000;
  const Words large = size > Words{} + 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
  Words found = size < Words{} + 0x38800000 ? small : normal;
  found = size >= Words{} + 0x47800000 ? large : found;
  const Halves halves = __builtin_convertvector(found | (words >> 16 & 0x8000), Halves);
  std::memcpy(p, &halves, sizeof halves);
}

#endif

}  // namespace groupwise::GW_TARGET
