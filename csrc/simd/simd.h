// A vector of floats as wide as the target's, by the vector extension of GCC and Clang.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#define GW_INLINE __attribute__((always_inline)) inline
#define GW_LAMBDA __attribute__((always_inline))
// For code that runs seldom or long: inlined at every call, it would take minutes to compile.
#define GW_NOINLINE __attribute__((noinline)) inline

namespace groupwise::GW_TARGET {

constexpr int kLanes = GW_LANES;
typedef float Vec __attribute__((vector_size(kLanes * 4)));

GW_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GW_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
GW_INLINE Vec broadcast(float x) { return x - Vec{}; }

// Keeps a loaded vector in its register: GCC 12 otherwise folds the load into every FMA that uses it and so repeats it,
// which cost half of the peak where one vector feeds four FMAs (31x31 depthwise: 30-35 % of peak, 96 % with it).
GW_INLINE void pin(Vec& v) { asm volatile("" : "+x"(v)); }

// Adds a * b to sum. With the instruction fixed GCC 12 keeps every sum in its register; free to choose among the three forms of
// FMA, it overwrote factors instead and kept one of 12 sums in memory.
GW_INLINE void add_product(Vec& sum, Vec a, Vec b) {
#ifdef __FMA__
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum += a * b;
#endif
}

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

GW_NOINLINE void store_part(float* p, Vec v, int64_t count) {
  alignas(kLanes * 4) float lanes[kLanes];
  store(lanes, v);
  const float* from = lanes;
  if (kLanes > 4 && count & 4) std::memcpy(p, from, 16), p += 4, from += 4;
  if (count & 2) std::memcpy(p, from, 8), p += 2, from += 2;
  if (count & 1) *p = *from;
}
GW_NOINLINE Vec load_part(const float* p, int64_t count) {
  alignas(kLanes * 4) float lanes[kLanes] = {};
  float* to = lanes;
  if (kLanes > 4 && count & 4) std::memcpy(to, p, 16), p += 4, to += 4;
  if (count & 2) std::memcpy(to, p, 8), p += 2, to += 2;
  if (count & 1) *to = *p;
  return load(lanes);
}

// Stores, or loads, the first `count` lanes and touches no byte beyond them.
GW_INLINE void store_some(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  store_part(p, v, count);
}
GW_INLINE Vec load_some(const float* p, int64_t count) { return count >= kLanes ? load(p) : load_part(p, count); }

// Stores the first `count` lanes, or adds them to what is there.
GW_INLINE void put(float* p, Vec v, int64_t count, bool add) {
  if (add) v += load_some(p, count < kLanes ? count : kLanes);
  store_some(p, v, count);
}

// Keeps the first `count` lanes and zeros the others, also where they are NaN, which a product with 0 would not.
GW_INLINE Vec keep(Vec v, int64_t count) {
  typedef int32_t Bits __attribute__((vector_size(kLanes * 4)));
  alignas(64) static constexpr int32_t kOnes[2 * kLanes] = {
      -1, -1, -1, -1,
#if GW_LANES == 8
      -1, -1, -1, -1,
#endif
  };
  Bits bits, ones;
  std::memcpy(&bits, &v, sizeof v);
  std::memcpy(&ones, kOnes + kLanes - count, sizeof ones);
  bits &= ones;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// Transposes in place.
GW_INLINE void transpose(Vec (&r)[kLanes]) {
#if GW_LANES == 8
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
#else
  const Vec t0 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), t1 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Vec t2 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), t3 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(t0, t2, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(t0, t2, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(t1, t3, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(t1, t3, 2, 3, 6, 7);
#endif
}

// Four floats, for rows that do not fill a vector, and their loads and stores.
typedef float Four __attribute__((vector_size(16)));
GW_INLINE Four load_four(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GW_INLINE void store_four(float* p, Four v) { std::memcpy(p, &v, sizeof v); }
// Loads p[0], p[2], p[4] and p[6], and no float beyond.
GW_INLINE Four load_even_four(const float* p) { return __builtin_shufflevector(load_four(p), load_four(p + 3), 0, 2, 5, 7); }

// Loads p[0], p[2], ... p[2 * kLanes - 2], and no float beyond.
GW_INLINE Vec load_even(const float* p) {
#if GW_LANES == 8
  const Vec a = load(p), b = load(p + kLanes - 1);
  // It shuffles within the halves, then between them: two instructions, where a single shuffle takes three and a table.
  const Vec t = __builtin_shufflevector(a, b, 0, 2, 9, 11, 4, 6, 13, 15);
  return __builtin_shufflevector(t, t, 0, 1, 4, 5, 2, 3, 6, 7);
#else
  return load_even_four(p);
#endif
}

// kLanes floats p[0], p[2], ... and as many p[1], p[3], ....
struct Pairs {
  Vec even, odd;
};
GW_INLINE Pairs load_pairs(const float* p) {
  const Vec a = load(p), b = load(p + kLanes);
#if GW_LANES == 8
  const Vec even = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  const Vec odd = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  return {__builtin_shufflevector(even, even, 0, 1, 4, 5, 2, 3, 6, 7),
          __builtin_shufflevector(odd, odd, 0, 1, 4, 5, 2, 3, 6, 7)};
#else
  return {__builtin_shufflevector(a, b, 0, 2, 4, 6), __builtin_shufflevector(a, b, 1, 3, 5, 7)};
#endif
}

// Returns the sum of the lanes of each of four vectors.
GW_INLINE Four sum_lanes(const Vec (&v)[4]) {
#if GW_LANES == 8
  // It adds neighbours of two vectors in turn, then the halves.
  const auto add = [](Vec a, Vec b) GW_LAMBDA {
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  };
  const Vec s = add(add(v[0], v[1]), add(v[2], v[3]));
  return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
#else
  Vec r[4] = {v[0], v[1], v[2], v[3]};
  transpose(r);
  return (r[0] + r[1]) + (r[2] + r[3]);
#endif
}

// Return the floats of two vectors in turn, a0 b0 a1 b1 ...: the first half, and the second.
GW_INLINE Vec interleave_low(Vec a, Vec b) {
#if GW_LANES == 8
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
GW_INLINE Vec interleave_high(Vec a, Vec b) {
#if GW_LANES == 8
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Calls whole(i) for every kLanes of n, the last of which start early rather than end late. If n < kLanes it calls half(i) for
// every four, and if n < 4 one(i). Some i come twice, so what is stored must depend on i alone, and buffers must not overlap.
template <class Whole, class Half, class One>
GW_INLINE void in_vectors(int64_t n, Whole&& whole, Half&& half, One&& one) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) whole(i);
  if (i == n) return;
  if (n >= kLanes) return whole(n - kLanes);
  if (n >= 4) {
    half(0);
    return half(n - 4);
  }
  for (; i < n; i++) one(i);
}

// Copies n floats between buffers that do not overlap. Short rows are common, and a call of memcpy takes as long.
GW_INLINE void copy(float* to, const float* from, int64_t n) {
  in_vectors(
      n, [&](int64_t i) GW_LAMBDA { store(to + i, load(from + i)); },
      [&](int64_t i) GW_LAMBDA { store_four(to + i, load_four(from + i)); }, [&](int64_t i) GW_LAMBDA { to[i] = from[i]; });
}

}  // namespace groupwise::GW_TARGET
