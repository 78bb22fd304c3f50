// What every width of vector has: numbers by the vector extension of GCC and Clang. Each csrc/simd/vecN.h defines GW_LANES,
// includes this file and adds what depends on the width; kernels include simd.h. Numbers are floats, or doubles if the build
// defines GW_FLOAT64, which vectors of 4 and of 8 can hold.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define GW_INLINE __attribute__((always_inline)) inline
#define GW_LAMBDA __attribute__((always_inline))
// For code that runs seldom or long: inlined at every call, it would take minutes to compile.
#define GW_NOINLINE __attribute__((noinline)) inline

namespace groupwise::GW_TARGET {

#ifdef GW_FLOAT64
using Real = double;
#else
using Real = float;
#endif

constexpr int kLanes = GW_LANES;
// An integer as wide as a number.
using Bit = std::conditional_t<sizeof(Real) == 8, int64_t, int32_t>;
typedef Real Vec __attribute__((vector_size(kLanes * sizeof(Real))));

GW_INLINE Vec load(const Real* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GW_INLINE void store(Real* p, Vec v) { std::memcpy(p, &v, sizeof v); }
GW_INLINE Vec broadcast(Real x) { return x - Vec{}; }

// Calls f(0), ..., f(N-1) with constant arguments: arrays of vectors that an ordinary loop indexes stay on the stack.
template <int N, class F>
GW_INLINE void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      __attribute__((always_inline)) { (f(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// Calls f(0), ..., f(n-1). N is n if that is a constant, else 0.
template <int N, class F>
GW_INLINE void each(int64_t n, F&& f) {
  if constexpr (N > 0) {
    unroll<N>(f);
  } else {
    for (int64_t i = 0; i < n; i++) f(i);
  }
}

// Four numbers, for rows that do not fill a vector, and their loads and stores.
typedef Real Four __attribute__((vector_size(4 * sizeof(Real))));
GW_INLINE Four load_four(const Real* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GW_INLINE void store_four(Real* p, Four v) { std::memcpy(p, &v, sizeof v); }
// Loads p[0], p[2], p[4] and p[6], and no number beyond.
GW_INLINE Four load_even_four(const Real* p) { return __builtin_shufflevector(load_four(p), load_four(p + 3), 0, 2, 5, 7); }

// kLanes numbers p[0], p[2], ... and as many p[1], p[3], ... .
struct Pairs {
  Vec even, odd;
};

}  // namespace groupwise::GW_TARGET
