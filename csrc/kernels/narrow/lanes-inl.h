// Spreads input channels over the lanes of a vector of output channels, so that each lane meets those of its own group.
#pragma once
#include "kernels/channels_layout.h"
#include "simd/simd.h"
#ifndef GW_FLOAT64
#include "simd/twice.h"
#endif

namespace groupwise::GW_TARGET {

// One sum a pixel, which multiplies every output channel by the input channels of its group, one after the other.
struct OneSum {
  static constexpr int kSums = 1;
  static constexpr int sum_of(int) { return 0; }
  static GW_INLINE void share(Vec out, Vec (&of_sum)[1]) { of_sum[0] = out; }
};

// Several groups of I input and O output channels in a vector. `take` returns input channel C of each lane's group; kStep is
// the number of floats between the inputs of one vector and of the next.
template <int I, int O>
struct ShuffledLanes : OneSum {
  static constexpr int kChannels = I, kLoads = I, kStep = kLanes / O * I;
  template <int C>
  static GW_INLINE Vec take(const Real* x) {
    if constexpr (I == 2 * O) {
      return load_even(x + C);
    } else if constexpr (kStep == 2 && sizeof(Real) == 4) {
      // Every pair of lanes gets both inputs, so that each lane finds its own within its half of the vector.
      // (Only floats have the function.)
      const Vec v = [](auto from) GW_LAMBDA { return load_pair(from); }(x);
      return spread([](int lane) { return lane / 2 * 2 + lane / O; }, v, v);
    } else if constexpr (kLanes == 16 && kStep == 4 && I == 1) {
      // Compilers spread a quarter of a vector lane by lane. (Only vectors of 16 have the function.)
      return [](auto from) GW_LAMBDA { return load_four_times(from); }(x);
    } else {
      typedef Real Inputs __attribute__((vector_size(kStep * sizeof(Real))));
      Inputs in;
      std::memcpy(&in, x, sizeof in);
      return spread([](int lane) { return lane / O * I + C; }, in, in);
    }
  }
};

#if GW_LANES > 8

// Groups whose inputs are loaded in the order of the tensor and meet factors in an order of their own, that of `arrange`: so no
// input is shuffled. There are two sums a pixel, which `fold` turns into the output channels, and factor C belongs to sum
// `sum_of(C)`. Factors kLoads apart meet the same load. In the gradient of a weight the factors are what is summed: `share`
// turns the output channels into what each of the two sums meets, and `restore` orders the results by input channel.

// Every output channel has two lanes, for inputs with even and with odd numbers. A vector holds half of the output channels.
template <int I>
struct LanesOfPairs {
  static constexpr int kChannels = I, kLoads = I, kSums = 2;
  static constexpr int sum_of(int c) { return c % 2; }
  static GW_INLINE Vec fold(Vec a, Vec b) {
    const Pairs pairs = deal(a, b);
    return pairs.even + pairs.odd;
  }
  static GW_INLINE void share(Vec out, Vec (&of_sum)[2]) {
    of_sum[0] = interleave_low(out, out);
    of_sum[1] = interleave_high(out, out);
  }
  static GW_INLINE void arrange(Vec (&v)[I]) {
    unroll<I / 2>([&](auto i) GW_LAMBDA {
      const Vec even = v[2 * i], odd = v[2 * i + 1];
      v[2 * i] = interleave_low(even, odd);
      v[2 * i + 1] = interleave_high(even, odd);
    });
  }
  static GW_INLINE void restore(Vec (&v)[I]) {
    unroll<I / 2>([&](auto i) GW_LAMBDA {
      const Pairs pairs = deal(v[2 * i], v[2 * i + 1]);
      v[2 * i] = pairs.even;
      v[2 * i + 1] = pairs.odd;
    });
  }
};

// Two groups of 8 input and 8 output channels; a load gives two input channels of one group to all lanes.
struct LanesOfEight : LanesOfPairs<8> {
  static constexpr int kStep = kLanes;
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    return load_pair(x + C % 2 * 8 + C / 2 * 2);
  }
};

// As many groups of 2 input channels and 1 output channel as there are lanes.
struct LanesOfTwoToOne : LanesOfPairs<2> {
  static constexpr int kStep = 2 * kLanes;
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    return load(x + C * kLanes);
  }
};

// Groups of 4 input and 4 output channels. Lanes 0 and 1 of a group load inputs 0 or 1, and lanes 2 and 3 inputs 2 or 3. The
// second sum is of the output channels of the other half of the group.
struct LanesOfFour {
  static constexpr int kChannels = 4, kLoads = 2, kStep = kLanes, kSums = 2;
  static constexpr int sum_of(int c) { return c / 2; }
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    return C % 2 == 0 ? load_even_twice(x) : load_odd_twice(x);
  }
  static GW_INLINE Vec fold(Vec a, Vec b) { return a + other_half(b); }
  static GW_INLINE void share(Vec out, Vec (&of_sum)[2]) {
    of_sum[0] = out;
    of_sum[1] = other_half(out);
  }
  static GW_INLINE void arrange(Vec (&v)[4]) {
    unroll<2>([&](auto i) GW_LAMBDA {
      const Vec low = v[i], high = v[i + 2];
      v[i] = spread([](int lane) { return lane % 4 < 2 ? lane : kLanes + lane; }, low, high);
      v[i + 2] = spread([](int lane) { return lane % 4 < 2 ? lane + 2 : kLanes + lane - 2; }, low, high);
    });
  }
  static GW_INLINE void restore(Vec (&v)[4]) {
    unroll<2>([&](auto i) GW_LAMBDA {
      const Vec own = v[i], other = v[i + 2];
      v[i] = spread([](int lane) { return lane % 4 < 2 ? lane : kLanes + lane - 2; }, own, other);
      v[i + 2] = spread([](int lane) { return lane % 4 < 2 ? kLanes + lane + 2 : lane; }, own, other);
    });
  }

 private:
  static GW_INLINE Vec other_half(Vec v) {
    return spread([](int lane) { return lane ^ 2; }, v, v);
  }
};

// Groups of 2 input and 2 output channels. Each input channel has a sum of its own, because eight sums wait for each other.
struct LanesOfTwo {
  static constexpr int kChannels = 2, kLoads = 2, kStep = kLanes, kSums = 2;
  static constexpr int sum_of(int c) { return c; }
  template <int C>
  static GW_INLINE Vec take(const float* x) {
    return C == 0 ? load_even_twice(x) : load_odd_twice(x);
  }
  static GW_INLINE Vec fold(Vec a, Vec b) { return a + b; }
  static GW_INLINE void share(Vec out, Vec (&of_sum)[2]) { of_sum[0] = of_sum[1] = out; }
  static GW_INLINE void arrange(Vec (&)[2]) {}
  static GW_INLINE void restore(Vec (&)[2]) {}
};

#endif

// Depthwise: each lane is a group.
struct LanesOfOne : OneSum {
  static constexpr int kChannels = 1, kLoads = 1, kStep = kLanes;
  template <int>
  static GW_INLINE Vec take(const Real* x) {
    return load(x);
  }
};

// All lanes belong to one group, whose input channels come one after the other.
struct OneGroup : OneSum {
  static constexpr int kChannels = 0, kStep = 0;
  template <int>
  static GW_INLINE Vec take(const Real* x) {
    return broadcast(*x);
  }
};

// Calls f with the lanes of groups of `in` input and `out` output channels (`lanes_fit`).
template <class F>
GW_INLINE void with_lanes(int64_t in, int64_t out, F&& f) {
  if (out >= kLanes) return f(OneGroup{});
  if (out == 1 && in == 1) return f(LanesOfOne{});
  if (out == 2 && in == 1) return f(ShuffledLanes<1, 2>{});
  if constexpr (kLanes > 4)
    if (out == 4 && in == 1) return f(ShuffledLanes<1, 4>{});
#if GW_LANES > 8
  // Two sums a pixel need as many registers as vectors of 16 have.
  if (in == 1) return f(ShuffledLanes<1, 8>{});
  if (out == 1) return f(LanesOfTwoToOne{});
  if (out == 2) return f(LanesOfTwo{});
  if (out == 4) return f(LanesOfFour{});
  f(LanesOfEight{});
#else
  if (out == 1) return f(ShuffledLanes<2, 1>{});
  if (out == 2) return f(ShuffledLanes<2, 2>{});
  if constexpr (kLanes > 4) f(ShuffledLanes<4, 4>{});
#endif
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
