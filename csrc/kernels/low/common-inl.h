// What the kernels of bfloat16 share: products of pairs, stores, activations of many sums, and how a tile walks over taps.
#pragma once
#include "kernels/activation-inl.h"
#include "kernels/low/low.h"
#include "simd/low.h"

namespace groupwise::GW_TARGET {

// The numbers of 2 vectors: a vector of pairs.
constexpr int kLowBlock = 2 * kLanes;

// Tells whether the processor multiplies pairs of bfloat16 numbers by one instruction.
GW_INLINE bool multiplies_pairs() {
#if GW_LANES == 16
  static const bool can = __builtin_cpu_supports("avx512bf16");
  return can;
#else
  return false;
#endif
}

// Adds the product of a pair of inputs, which each lane of x holds, and the pairs of weights.
template <bool Native>
GW_INLINE void add_pairs(Vec& sum, Words x, Words w) {
#if GW_LANES == 16
  if constexpr (Native) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return;
  }
#endif
  const Pairs a = dealt(x), b = dealt(w);
  add_product(sum, a.even, b.even);
  add_product(sum, a.odd, b.odd);
}

GW_INLINE Words rounded_pairs([[maybe_unused]] bool native, const Pairs& pairs) {
#if GW_LANES == 16
  if (native) return joined_natively(pairs);
#endif
  return joined(pairs);
}

template <bool Native>
GW_INLINE void store_low(Bfloat16* to, Vec v, int64_t count) {
#if GW_LANES == 16
  if constexpr (Native) {
    __m256i halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(v));
    if (count >= kLanes) {
      std::memcpy(to, &halves, sizeof halves);
    } else {
      _mm256_mask_storeu_epi16(to, first_lanes(count), halves);
    }
    return;
  }
#endif
  store_some(to, v, count);
}

template <int N>
GW_NOINLINE void activate_sums(const Activate& a, Vec* v) {
  with_any(a.kind, [&](auto activation) {
    unroll<N>([&](auto i) GW_LAMBDA { v[i] = activate<activation()>(v[i], a.first, a.second); });
  });
}

// Activates the sums of a tile. A clamp leaves them in registers; for another activation they are copied to memory.
template <int N>
GW_INLINE void activate_low(const Activate& a, Vec (&v)[N]) {
  Clamp clamp;
  if (is_clamp(a, &clamp)) {
    if (a.kind != Activation::none) unroll<N>([&](auto i) GW_LAMBDA { v[i] = clamped(v[i], clamp); });
    return;
  }
  Vec made[N];
  unroll<N>([&](auto i) GW_LAMBDA { made[i] = v[i]; });
  activate_sums<N>(a, made);
  unroll<N>([&](auto i) GW_LAMBDA { v[i] = made[i]; });
}

// How a tile walks the taps [first_row, first_row + rows) of each column. x_row and x_column are the numbers between rows of taps and
// columns of the image; `tap` and `step` are the columns between taps and between outputs.
struct LowWalk {
  int64_t first_row, rows, columns, x_row, x_column, tap, step, width, y_pixel;
  const Activate *before, *after;
  bool residual;
  bool native;  // whether the processor rounds to bfloat16 by one instruction
};

}  // namespace groupwise::GW_TARGET
