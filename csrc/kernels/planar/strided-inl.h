// Vectors of numbers that are a stride apart, as a tap of neighbouring outputs reads them.
#pragma once
#include "simd/simd.h"

#include <type_traits>

namespace groupwise::GW_TARGET {

// Returns numbers R, S + R, 2 S + R, ... of S vectors that follow each other.
template <int S, int R>
GW_INLINE Vec every(const Vec (&v)[S]) {
  Vec found = v[0];
  unroll<S - 1>([&](auto n) GW_LAMBDA {
    constexpr int next = n + 1;
    // Each step takes what lies in the next vector, and the first also what lies in the first.
    const auto lane_of = [](int lane) {
      const int number = S * lane + R, vector = number / kLanes;
      if (vector == next) return kLanes + number % kLanes;
      return next == 1 && vector == 0 ? number : lane;
    };
    found = spread(lane_of, found, v[next]);
  });
  return found;
}

// Calls use(k, v) with what tap k of K reads for a vector of neighbouring outputs, for each tap. load(k, i) loads the vector that begins i
// numbers behind what tap k reads for the first output. With a stride S above 1 taps must be neighbours: S of them, from tap k on, are taken
// from the same S vectors.
template <int K, int S, class Load, class Use>
GW_INLINE void each_tap(Load&& load, Use&& use) {
  unroll<(K + S - 1) / S>([&](auto n) GW_LAMBDA {
    constexpr int first = n * S;
    Vec v[S];
    unroll<S>([&](auto i) GW_LAMBDA { v[i] = load(std::integral_constant<int, first>{}, i * kLanes); });
    unroll<(K - first < S ? K - first : S)>([&](auto r)
                                                GW_LAMBDA { use(std::integral_constant<int, first + r>{}, every<S, r>(v)); });
  });
}

}  // namespace groupwise::GW_TARGET
