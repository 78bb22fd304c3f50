// A row of many taps that are neighbours. A load that crosses a cache line takes as long as two, so each vector of inputs is loaded
// once, and shifted from tap to tap; a shift serves two taps that are a vector apart.
#pragma once
#include "kernels/planar/task-inl.h"

namespace groupwise::GW_TARGET {

// From how many taps on inputs are shifted. Without masks vectors are short: few loads cross a line, and a shift is two instructions.
constexpr int64_t kLeastShifted = 10;

#ifdef GW_FLOAT64
#define GW_ALIGN "valignq"
#else
#define GW_ALIGN "valignd"
#endif

// Returns lanes from `First` on of two vectors that follow each other. GCC 12 would shuffle by a table, which overwrites a vector.
template <int First>
GW_INLINE Vec shifted(Vec a, Vec b) {
  if constexpr (First == 0) return a;
#ifdef GW_512
  Vec v;
  asm(GW_ALIGN " %3, %1, %2, %0" : "=v"(v) : "v"(a), "v"(b), "i"(First));
  return v;
#else
  return spread([](int lane) { return First + lane; }, a, b);
#endif
}

// Adds the products of one row of n taps, `w_column` numbers apart, to NV vectors of sums. in(i) loads the vector of inputs that begins
// i numbers behind the first one.
template <int NV, class In>
GW_INLINE void add_shifted(int64_t n, const Real* w, int64_t w_column, In&& in, Vec (&sum)[NV]) {
  for (int64_t tap = 0; tap < n; tap += 2 * kLanes) {
    const int64_t left = n - tap;
    Vec some[NV + 2];
    // What no tap reads may be behind the scratch.
    unroll<NV + 2>([&](auto v) GW_LAMBDA { some[v] = (v - NV) * kLanes < left - 1 ? in(tap + v * kLanes) : Vec{}; });
    unroll<kLanes>([&](auto first) GW_LAMBDA {
      constexpr int shift = first;
      if (shift >= left) return;
      const auto add = [&](auto both) GW_LAMBDA {
        const Vec one = broadcast(w[(tap + shift) * w_column]);
        const Vec two = both ? broadcast(w[(tap + shift + kLanes) * w_column]) : Vec{};
        unroll<NV + both>([&](auto v) GW_LAMBDA {
          const Vec from = shifted<shift>(some[v], some[v + 1]);
          if constexpr (v < NV) add_product(sum[v], from, one);
          if constexpr (both && v > 0) add_product(sum[v - 1], from, two);
        });
      };
      if (shift + kLanes < left) return add(std::integral_constant<int, 1>{});
      add(std::integral_constant<int, 0>{});
    });
  }
}

// Computes NV neighbouring vectors of a row.
template <int NV>
GW_NOINLINE void shifted_tile(const Taps& t, const Real* x, const Real* w, const Real* bias, Real* y, int64_t stored,
                              bool add) {
  Vec sum[NV];
  unroll<NV>([&](auto v) GW_LAMBDA { sum[v] = bias ? broadcast(*bias) : Vec{}; });
  for (int64_t c = 0; c < t.channels; c++)
    for (int64_t kh = 0; kh < t.rows; kh++) {
      const Real* row = x + c * t.x_channel + kh * t.x_row + t.column[0];
      add_shifted<NV>(
          t.columns, w + c * t.w_channel + kh * t.w_row, t.w_column, [&](int64_t i) GW_LAMBDA { return load(row + i); }, sum);
    }
  unroll<NV>([&](auto v) GW_LAMBDA { put(y + v * kLanes, sum[v], stored - v * kLanes, add); });
}

}  // namespace groupwise::GW_TARGET
