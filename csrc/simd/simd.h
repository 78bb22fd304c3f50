// A vector of floats as wide as the target's. The build names the file of its width by GW_VECTORS.
#pragma once

#include GW_VECTORS

namespace groupwise::GW_TARGET {

// Keeps a loaded vector in its register: GCC 12 otherwise folds the load into every FMA that uses it and so repeats it,
// which cost half of the peak where one vector feeds four FMAs (31x31 depthwise: 30-35 % of peak, 96 % with it).
GW_INLINE void pin(Vec& v) { asm volatile("" : "+" GW_REGISTER(v)); }

// Adds a * b to sum. With the instruction fixed GCC 12 keeps every sum in its register; free to choose among the three forms of
// FMA, it overwrote factors instead and kept one of 12 sums in memory.
GW_INLINE void add_product(Vec& sum, Vec a, Vec b) {
#ifdef __FMA__
  asm("vfmadd231ps %2, %1, %0" : "+" GW_REGISTER(sum) : GW_REGISTER(a), GW_REGISTER(b));
#else
  sum += a * b;
#endif
}

// Stores the first `count` lanes, or adds them to what is there.
GW_INLINE void put(float* p, Vec v, int64_t count, bool add) {
  if (add) v += load_some(p, count < kLanes ? count : kLanes);
  store_some(p, v, count);
}

// Loads kLanes floats p[0], p[2], ... and as many p[1], p[3], ... . `load_pairs_some` loads `count` floats in all, and zeros.
GW_INLINE Pairs load_pairs(const float* p) { return deal(load(p), load(p + kLanes)); }
GW_INLINE Pairs load_pairs_some(const float* p, int64_t count) {
  return deal(load_some(p, count), load_some(p + kLanes, count > kLanes ? count - kLanes : 0));
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

// Copies n floats between buffers that do not overlap. Short rows are common, and a call of memcpy takes as long.
GW_INLINE void copy(float* to, const float* from, int64_t n) {
  if (kMasks && n < kLanes) return store_some(to, load_some(from, n), n);
  in_vectors(
      n, [&](int64_t i) GW_LAMBDA { store(to + i, load(from + i)); },
      [&](int64_t i) GW_LAMBDA { store_four(to + i, load_four(from + i)); }, [&](int64_t i) GW_LAMBDA { to[i] = from[i]; });
}

}  // namespace groupwise::GW_TARGET
