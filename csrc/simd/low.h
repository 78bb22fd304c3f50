// Loads and stores of bfloat16 numbers as vectors of floats, under the names that those of floats have.
#pragma once

#include "bfloat16.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

GW_INLINE Words words_of(Vec v) {
  Words words;
  std::memcpy(&words, &v, sizeof v);
  return words;
}

#if GW_LANES == 16
// GCC 12 makes five instructions of __builtin_convertvector here.
GW_INLINE Words extended(Halves halves) {
  __m256i given;
  std::memcpy(&given, &halves, sizeof given);
  const __m512i longer = _mm512_cvtepu16_epi32(given);
  Words words;
  std::memcpy(&words, &longer, sizeof words);
  return words;
}
#else
GW_INLINE Words extended(Halves halves) { return __builtin_convertvector(halves, Words); }
#endif

GW_INLINE Vec widened(Halves halves) {
  const Words words = extended(halves) << 16;
  Vec v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}

// Rounds to the nearest, and to the even one of two, in the upper half of each word; a NaN stays a NaN.
GW_INLINE Words nearest(Vec v) {
  const Words words = words_of(v), near = words + 0x7fff + (words >> 16 & 1);
  return v == v ? near : words | 0x400000;
}
GW_INLINE Halves rounded(Vec v) { return __builtin_convertvector(nearest(v) >> 16, Halves); }

GW_INLINE Vec load(const Bfloat16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  return widened(halves);
}
GW_INLINE void store(Bfloat16* p, Vec v) {
  const Halves halves = rounded(v);
  std::memcpy(p, &halves, sizeof halves);
}

#if GW_LANES == 16

GW_INLINE Vec load_some(const Bfloat16* p, int64_t count) {
  Halves halves;
  const __m256i read = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  std::memcpy(&halves, &read, sizeof halves);
  return widened(halves);
}
GW_INLINE void store_some(Bfloat16* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  const Halves halves = rounded(v);
  __m256i written;
  std::memcpy(&written, &halves, sizeof halves);
  _mm256_mask_storeu_epi16(p, first_lanes(count), written);
}

#else

GW_NOINLINE Vec load_part(const Bfloat16* p, int64_t count) {
  Bfloat16 lanes[kLanes] = {};
  for (int64_t i = 0; i < count; i++) lanes[i] = p[i];
  return load(lanes);
}
GW_NOINLINE void store_part(Bfloat16* p, Vec v, int64_t count) {
  Bfloat16 lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; i++) p[i] = lanes[i];
}
GW_INLINE Vec load_some(const Bfloat16* p, int64_t count) { return count >= kLanes ? load(p) : load_part(p, count); }
GW_INLINE void store_some(Bfloat16* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  store_part(p, v, count);
}

#endif

// 2 * kLanes neighbours as the even ones and the odd ones, which takes less than to widen each half.
GW_INLINE Pairs dealt(Words words) {
  const Words even = words << 16, odd = words & 0xffff0000;
  Pairs pairs;
  std::memcpy(&pairs.even, &even, sizeof even);
  std::memcpy(&pairs.odd, &odd, sizeof odd);
  return pairs;
}
GW_INLINE Words joined(const Pairs& pairs) { return nearest(pairs.even) >> 16 | (nearest(pairs.odd) & 0xffff0000); }

#if GW_LANES == 16
// The same by an instruction of AVX512-BF16, which takes subnormal numbers for zeros.
GW_INLINE Words joined_natively(const Pairs& pairs) {
  typedef uint16_t Both __attribute__((vector_size(kLanes * 4)));
  Both halves;
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(pairs.odd), "v"(pairs.even));
  const Both woven = [&]<int... L>(std::integer_sequence<int, L...>) GW_LAMBDA {
    return __builtin_shufflevector(halves, halves, (L % 2 * kLanes + L / 2)...);
  }(std::make_integer_sequence<int, 2 * kLanes>{});
  Words words;
  std::memcpy(&words, &woven, sizeof words);
  return words;
}
#endif

GW_INLINE Pairs load_both(const Bfloat16* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return dealt(words);
}
GW_INLINE void store_both(Bfloat16* p, Words both) { std::memcpy(p, &both, sizeof both); }

#if GW_LANES == 16

// Loads the first `count`, or stores those from `first` on that are below `count`.
GW_INLINE Pairs load_both_some(const Bfloat16* p, int64_t count) {
  const __mmask32 mask = count >= 32 ? ~0u : (1u << count) - 1;
  const __m512i read = _mm512_maskz_loadu_epi16(mask, p);
  Words words;
  std::memcpy(&words, &read, sizeof words);
  return dealt(words);
}
GW_INLINE void store_both_some(Bfloat16* p, Words both, int64_t first, int64_t count) {
  const __mmask32 below = count >= 32 ? ~0u : (1u << count) - 1;
  __m512i written;
  std::memcpy(&written, &both, sizeof both);
  _mm512_mask_storeu_epi16(p, below & ~((1u << first) - 1), written);
}

#else

GW_NOINLINE Pairs load_both_some(const Bfloat16* p, int64_t count) {
  Bfloat16 lanes[2 * kLanes] = {};
  for (int64_t i = 0; i < count; i++) lanes[i] = p[i];
  return load_both(lanes);
}
GW_NOINLINE void store_both_some(Bfloat16* p, Words both, int64_t first, int64_t count) {
  Bfloat16 lanes[2 * kLanes];
  store_both(lanes, both);
  for (int64_t i = first; i < count; i++) p[i] = lanes[i];
}

#endif

}  // namespace groupwise::GW_TARGET
