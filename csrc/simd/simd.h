// A vector of numbers as wide as the target's. The build names the file of its width by GW_VECTORS.
#pragma once

#include GW_VECTORS

namespace groupwise::GW_TARGET {

// Keeps a loaded vector in its register: GCC 12 otherwise folds the load into every FMA that uses it and so repeats it,
// which cost half of the peak where one vector feeds four FMAs (31x31 depthwise: 30-35 % of peak, 96 % with it).
#ifdef GW_REGISTER
GW_INLINE void pin(Vec& v) { asm volatile("" : "+" GW_REGISTER(v)); }
#else
GW_INLINE void pin(Vec&) {}
#endif

#ifdef GW_FLOAT64
#define GW_MULTIPLY_ADD "vfmadd231pd"
#else
#define GW_MULTIPLY_ADD "vfmadd231ps"
#endif

// Adds a * b to sum. With the instruction fixed GCC 12 keeps every sum in its register; free to choose among the three forms of
// FMA, it overwrote factors instead and kept one of 12 sums in memory.
GW_INLINE void add_product(Vec& sum, Vec a, Vec b) {
#ifdef __FMA__
  asm(GW_MULTIPLY_ADD " %2, %1, %0" : "+" GW_REGISTER(sum) : GW_REGISTER(a), GW_REGISTER(b));
#else
  sum += a * b;
#endif
}

// Stores the first `count` lanes, or adds them to what is there.
GW_INLINE void put(Real* p, Vec v, int64_t count, bool add) {
  if (add) v += load_some(p, count < kLanes ? count : kLanes);
  store_some(p, v, count);
}

// Loads kLanes numbers p[0], p[2], ... and as many p[1], p[3], ... . `load_pairs_some` loads `count` numbers in all, and zeros.
GW_INLINE Pairs load_pairs(const Real* p) { return deal(load(p), load(p + kLanes)); }
GW_INLINE Pairs load_pairs_some(const Real* p, int64_t count) {
  return deal(load_some(p, count), load_some(p + kLanes, count > kLanes ? count - kLanes : 0));
}

// Returns lane from(l) of a and b, side by side, in lane l.
template <class From, class V>
GW_INLINE Vec spread(From, V a, V b) {
  return [&]<int... L>(std::integer_sequence<int, L...>)
             GW_LAMBDA { return __builtin_shufflevector(a, b, From{}(L)...); }(std::make_integer_sequence<int, kLanes>{});
}

// Orders the numbers of P vectors in turn: the first of each, then the second of each, and so on.
GW_INLINE void weave(Vec (&v)[2]) {
  const Vec a = v[0], b = v[1];
  v[0] = interleave_low(a, b);
  v[1] = interleave_high(a, b);
}
GW_INLINE void weave(Vec (&v)[4]) {
  Vec even[2] = {v[0], v[2]}, odd[2] = {v[1], v[3]};
  weave(even);
  weave(odd);
  unroll<2>([&](auto i) GW_LAMBDA {
    v[2 * i] = interleave_low(even[i], odd[i]);
    v[2 * i + 1] = interleave_high(even[i], odd[i]);
  });
}
GW_INLINE void weave(Vec (&v)[3]) {
  const Vec a = v[0], b = v[1], c = v[2];
  unroll<3>([&](auto i) GW_LAMBDA {
    // Lane l of vector i is number first + l of all. The first shuffle leaves holes for those of c.
    constexpr int first = i * kLanes;
    const Vec ab = spread([](int l) { return (first + l) / 3 + ((first + l) % 3 == 1 ? kLanes : 0); }, a, b);
    v[i] = spread([](int l) { return (first + l) % 3 == 2 ? kLanes + (first + l) / 3 : l; }, ab, c);
  });
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
    for (; i + 4 <= n; i += 4) half(i);
    if (i < n) half(n - 4);
    return;
  }
  for (; i < n; i++) one(i);
}

// Copies n numbers between buffers that do not overlap. Short rows are common, and a call of memcpy takes as long.
GW_INLINE void copy(Real* to, const Real* from, int64_t n) {
  if (kMasks && n < kLanes) return store_some(to, load_some(from, n), n);
  in_vectors(
      n, [&](int64_t i) GW_LAMBDA { store(to + i, load(from + i)); },
      [&](int64_t i) GW_LAMBDA { store_four(to + i, load_four(from + i)); }, [&](int64_t i) GW_LAMBDA { to[i] = from[i]; });
}

}  // namespace groupwise::GW_TARGET
