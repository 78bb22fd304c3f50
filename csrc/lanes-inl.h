// How the lanes of a vector of output channels find the input channels of their groups.
#pragma once
#include "simd.h"

namespace groupwise::GW_TARGET {

// Lane l of the result is lane from(l) of a and b side by side.
template <class From, class V>
GW_INLINE Vec spread(From, V a, V b) {
  return [&]<int... L>(std::integer_sequence<int, L...>) GW_LAMBDA {
    return __builtin_shufflevector(a, b, From{}(L)...);
  }(std::make_integer_sequence<int, kLanes>{});
}

// I input and O output channels a group, several groups in a vector: input channel C of each lane's group. kStep: floats
// from the inputs of one vector to those of the next.
template <int I, int O>
struct GroupLanes {
  static constexpr int kChannels = I, kStep = kLanes / O * I;
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    if constexpr (I == 2 * O) {
      return load_even(x + C);
    } else if constexpr (kStep == 2) {
      // Both inputs in every pair of lanes, so that each lane finds its own within its half of the vector.
      typedef int64_t Pairs __attribute__((vector_size(kLanes * 4)));
      int64_t both;
      std::memcpy(&both, x, sizeof both);
      const Pairs pairs = both + Pairs{};
      Vec v;
      std::memcpy(&v, &pairs, sizeof v);
      return spread([](int lane) { return lane / 2 * 2 + lane / O; }, v, v);
    } else {
      typedef float Inputs __attribute__((vector_size(kStep * 4)));
      Inputs in;
      std::memcpy(&in, x, sizeof in);
      return spread([](int lane) { return lane / O * I + C; }, in, in);
    }
  }
};

// Depthwise: each lane is a group.
template <>
struct GroupLanes<1, 1> {
  static constexpr int kChannels = 1, kStep = kLanes;
  template <int>
  static GW_INLINE Vec take(const float* x) {
    return load(x);
  }
};

// All lanes are of one group, whose input channels come one after the other.
struct OneGroup {
  static constexpr int kChannels = 0, kStep = 0;
  template <int>
  static GW_INLINE Vec take(const float* x) {
    return broadcast(*x);
  }
};

}  // namespace groupwise::GW_TARGET
