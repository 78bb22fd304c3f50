// Spreads input channels over the lanes of a vector of output channels, so that each lane meets those of its own group.
#pragma once
#include "kernels/channels_layout.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Several groups of I input and O output channels in a vector. `take` returns input channel C of each lane's group; kStep is
// the number of floats between the inputs of one vector and of the next.
template <int I, int O>
struct GroupLanes {
  static constexpr int kChannels = I, kStep = kLanes / O * I;
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    if constexpr (I == 2 * O) {
      return load_even(x + C);
    } else if constexpr (kStep == 2) {
      // Every pair of lanes gets both inputs, so that each lane finds its own within its half of the vector.
      typedef int64_t Pairs __attribute__((vector_size(kLanes * 4)));
      int64_t both;
      std::memcpy(&both, x, sizeof both);
      const Pairs pairs = both + Pairs{};
      Vec v;
      std::memcpy(&v, &pairs, sizeof v);
      return spread([](int lane) { return lane / 2 * 2 + lane / O; }, v, v);
    } else if constexpr (kLanes == 16 && kStep == 4 && I == 1) {
      // Compilers spread a quarter of a vector lane by lane. (Only vectors of 16 have the function.)
      return [](auto from) GW_LAMBDA { return load_four_times(from); }(x);
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

// All lanes belong to one group, whose input channels come one after the other.
struct OneGroup {
  static constexpr int kChannels = 0, kStep = 0;
  template <int>
  static GW_INLINE Vec take(const float* x) {
    return broadcast(*x);
  }
};

// Calls f with the lanes of groups of `in` input and `out` output channels (`lanes_fit`).
template <class F>
GW_INLINE void with_lanes(int64_t in, int64_t out, F&& f) {
  if (out >= kLanes) return f(OneGroup{});
  if (out == 1 && in == 1) return f(GroupLanes<1, 1>{});
  if (out == 1 && in == 2) return f(GroupLanes<2, 1>{});
  if (out == 2 && in == 1) return f(GroupLanes<1, 2>{});
  if (out == 2 && in == 2) return f(GroupLanes<2, 2>{});
  if constexpr (kLanes > 4) {
    if (out == 4 && in == 1) return f(GroupLanes<1, 4>{});
    if (out == 4) return f(GroupLanes<4, 4>{});
  }
  if constexpr (kLanes > 8) {
    if (in == 1) return f(GroupLanes<1, 8>{});
    f(GroupLanes<8, 8>{});
  }
}

// Packed weights: the floats between input channels, rows and columns of taps, and vectors of output channels.
struct Packed {
  int64_t channel, row, column, vector;
};

// Orders the weights of each vector as [input channel][tap] or, as in a channels-last weight, [tap][input channel].
inline Packed packed_order(bool by_taps, int64_t in_channels, int64_t kernel_h, int64_t kernel_w) {
  const int64_t taps = kernel_h * kernel_w, tap = by_taps ? in_channels * kLanes : kLanes;
  return {by_taps ? kLanes : taps * kLanes, kernel_w * tap, tap, in_channels * taps * kLanes};
}

// The vectors of a block of output channels: `count` runs of `together` neighbouring channels, each of `vectors` vectors. Where
// these must not end late, the last starts early; the first `whole` do not.
struct Runs {
  int64_t count, together, vectors, whole;
  int64_t first(int64_t v) const {
    const int64_t in_run = v % vectors;
    return v / vectors * together + (in_run < whole ? in_run * kLanes : together - kLanes);
  }
};

// Makes a run of each group if a group is no whole number of vectors, else one run of the block.
inline Runs runs_of(int64_t out_channels, int64_t channels, bool exact) {
  const int64_t together = out_channels >= kLanes && out_channels % kLanes != 0 ? out_channels : channels;
  const int64_t vectors = ceil_div(together, kLanes);
  return {channels / together, together, vectors, exact ? together / kLanes : vectors};
}

}  // namespace groupwise::GW_TARGET
