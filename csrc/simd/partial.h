// Parts of a vector of 4 or 8 numbers, without masks. A vecN.h defines GW_REGISTERS and includes it after base.h.
#pragma once

#include <algorithm>

namespace groupwise::GW_TARGET {

// The vector registers, by which tiles have their sizes.
constexpr int kRegisters = GW_REGISTERS;
// Tells whether a partial load or store is one instruction.
constexpr bool kMasks = false;

GW_NOINLINE void store_part(Real* p, Vec v, int64_t count) {
  alignas(Vec) Real lanes[kLanes];
  store(lanes, v);
  const Real* from = lanes;
  if (kLanes > 4 && (count & 4)) std::memcpy(p, from, 4 * sizeof(Real)), p += 4, from += 4;
  if (count & 2) std::memcpy(p, from, 2 * sizeof(Real)), p += 2, from += 2;
  if (count & 1) *p = *from;
}
// Loads `count` lanes from lane `first` on.
GW_NOINLINE Vec load_part(const Real* p, int64_t count, int64_t first = 0) {
  alignas(Vec) Real lanes[kLanes] = {};
  Real* to = lanes + first;
  if (kLanes > 4 && (count & 4)) std::memcpy(to, p, 4 * sizeof(Real)), p += 4, to += 4;
  if (count & 2) std::memcpy(to, p, 2 * sizeof(Real)), p += 2, to += 2;
  if (count & 1) *to = *p;
  return load(lanes);
}

// Stores, or loads, the first `count` lanes and touches no byte beyond them.
GW_INLINE void store_some(Real* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  store_part(p, v, count);
}
GW_INLINE Vec load_some(const Real* p, int64_t count) { return count >= kLanes ? load(p) : load_part(p, count); }

// Loads lanes [first, last), and zeros, and touches no byte beside them.
GW_INLINE Vec load_between(const Real* p, int64_t first, int64_t last) {
  if (first <= 0 && last >= kLanes) return load(p);
  const int64_t from = std::max<int64_t>(0, first), count = std::min<int64_t>(kLanes, last) - from;
  return count > 0 ? load_part(p + from, count, from) : Vec{};
}

// Ones in all bits of the first kLanes numbers, and zeros in as many behind them.
struct Ones {
  Bit bits[2 * kLanes] = {};
  constexpr Ones() {
    for (int i = 0; i < kLanes; i++) bits[i] = -1;
  }
};

// Keeps the first `count` lanes and zeros the others, also where they are NaN, which a product with 0 would not.
GW_INLINE Vec keep(Vec v, int64_t count) {
  typedef Bit Bits __attribute__((vector_size(kLanes * sizeof(Real))));
  alignas(64) static constexpr Ones kOnes;
  Bits bits, ones;
  std::memcpy(&bits, &v, sizeof v);
  std::memcpy(&ones, kOnes.bits + kLanes - count, sizeof ones);
  bits &= ones;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

}  // namespace groupwise::GW_TARGET
