// Convolutions of groups of several channels: sums of products of pairs of inputs. A vector holds outputs of several groups, each of
// which meets the inputs of its own, or outputs of one group.
#pragma once
#include <algorithm>

#include "kernels/low/common-inl.h"

namespace groupwise::GW_TARGET {

// A tile of one row of outputs, of one vector or of two.
struct GroupedTile {
  const Bfloat16* x;
  const Bfloat16* w;
  const float* bias;
  Bfloat16* y;
  const Bfloat16* residual;
  int64_t column, stored;
  int64_t input, output;  // how far the inputs of the second vector, and its outputs, are from those of the first
  int64_t skipped[2];     // the lanes that the vector before each stores
};

// Adds a tap of G channels a group, where several groups share a vector, or of inputs [inputs.first, inputs.last) where G is 0. `x`
// returns where the inputs of a pixel are, or null if it lies outside the image, which none does where it is not asked.
template <bool Native, int V, int G, bool Asked, class X>
GW_INLINE void add_tap(int64_t second, const Bfloat16* w, int64_t w_vector, Range inputs, X&& x,
                       Vec (&sum)[kGroupedPixels * V]) {
  const auto weights = [&](int64_t v, int64_t pair) GW_LAMBDA {
    Words words;
    std::memcpy(&words, w + v * w_vector + pair * kLowBlock, sizeof words);
    return words;
  };
  if constexpr (G > 0) {
    typedef uint32_t Few __attribute__((vector_size(kLanes * 2)));
    unroll<V>([&](auto v) GW_LAMBDA {
      Words some[G / 2];
      unroll<G / 2>([&](auto pair) GW_LAMBDA { some[pair] = weights(v, pair); });
      unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
        const Bfloat16* from = x(p);
        if (Asked && !from) return;
        Few in;
        std::memcpy(&in, from + (v == 0 ? 0 : second), sizeof in);
        unroll<G / 2>([&](auto number) GW_LAMBDA {
          constexpr int pair = number;
          const Words own = [&]<int... L>(std::integer_sequence<int, L...>) GW_LAMBDA {
            return __builtin_shufflevector(in, in, (L / G * (G / 2) + pair)...);
          }(std::make_integer_sequence<int, kLanes>{});
          add_pairs<Native>(sum[p * V + v], own, some[pair]);
        });
      });
    });
  } else {
    // Vectors of a tile that are not of one group read each their own.
    const bool one = V == 1 || second == 0;
    for (int64_t pair = inputs.first / 2; pair < inputs.last / 2; pair++) {
      Words some[V];
      unroll<V>([&](auto v) GW_LAMBDA { some[v] = weights(v, pair); });
      unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
        const Bfloat16* from = x(p);
        if (Asked && !from) return;
        unroll<V>([&](auto v) GW_LAMBDA {
          uint32_t both;
          std::memcpy(&both, from + 2 * pair + (one || v == 0 ? 0 : second), sizeof both);
          add_pairs<Native>(sum[p * V + v], both + Words{}, some[v]);
        });
      });
    }
  }
}

// A tap of a tile: where its first pixel's inputs are, and its weights. The others are `x_pixel` and `w_vector` further, and the inputs
// of the second vector `second`.
struct GroupedTap {
  const Bfloat16 *x, *w;
  int64_t w_vector, x_pixel, second;
  int64_t column, step, width;  // of the image
};

template <bool Native, int V, int G>
GW_INLINE void add_inputs(const GroupedTap& t, bool inside, Range inputs, Vec (&sum)[kGroupedPixels * V]) {
  if (inside)
    return add_tap<Native, V, G, false>(
        t.second, t.w, t.w_vector, inputs, [&](int64_t p) GW_LAMBDA { return t.x + p * t.x_pixel; }, sum);
  add_tap<Native, V, G, true>(
      t.second, t.w, t.w_vector, inputs,
      [&](int64_t p) GW_LAMBDA {
        const int64_t at = t.column + p * t.step;
        return at >= 0 && at < t.width ? t.x + p * t.x_pixel : nullptr;
      },
      sum);
}

// A late vector begins before the end of the one before.
template <bool Native, int V, int G, bool Late>
GW_NOINLINE void grouped_tile(const LowGrouped& c, const LowWalk& k, const GroupedTile& t) {
  const int64_t input = !Late && G > 0 ? kLanes : t.input, second = Late ? t.output : kLanes;
  Vec sum[kGroupedPixels * V];
  unroll<V>([&](auto v) GW_LAMBDA {
    const Vec bias = load(t.bias + (v == 0 ? 0 : second));
    unroll<kGroupedPixels>([&](auto p) GW_LAMBDA { sum[p * V + v] = bias; });
  });
  // The sums of the runs before, where there are several: a longer one would round too much.
  Vec total[kGroupedPixels * V];
  bool several = false;
  int64_t summed = 0;
  const auto end_run = [&]() GW_LAMBDA {
    unroll<kGroupedPixels * V>([&](auto i) GW_LAMBDA {
      total[i] = several ? total[i] + sum[i] : sum[i];
      sum[i] = Vec{};
    });
    several = true;
    summed = 0;
  };
  const int64_t w_tap = c.inputs / 2 * kLowBlock, w_vector = c.taps() * w_tap, most = even_run(c.inputs / 2, kRun / 2) * 2;
  const int64_t reach = (kGroupedPixels - 1) * k.step + (k.columns - 1) * k.tap;
  const bool inside = t.column >= 0 && t.column + reach < k.width;
  for (int64_t row = 0; row < k.rows; row++)
    for (int64_t tap = 0; tap < k.columns; tap++) {
      const GroupedTap at{t.x + row * k.x_row + tap * k.tap * k.x_column,
                          t.w + ((k.first_row + row) * k.columns + tap) * w_tap,
                          w_vector,
                          k.step * k.x_column,
                          input,
                          t.column + tap * k.tap,
                          k.step,
                          k.width};
      if constexpr (G > 0) {
        if (summed + G > kRun) end_run();
        summed += G;
        add_inputs<Native, V, G>(at, inside, Range{0, G}, sum);
      } else {
        // GCC 12 keeps the sums in registers as this loop is written. With a count of inputs in place of the last one it keeps them in
        // memory, which takes twice the time.
        for (int64_t first = 0; first < c.inputs; first += most) {
          const int64_t last = std::min(c.inputs, first + most);
          if (summed + last - first > kRun) end_run();
          summed += last - first;
          add_inputs<Native, V, G>(at, inside, Range{first, last}, sum);
        }
      }
    }
  if (several) unroll<kGroupedPixels * V>([&](auto i) GW_LAMBDA { sum[i] += total[i]; });
  activate_low(c.before, sum);
  if (t.residual) {
    unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
      if (p >= t.stored) return;
      unroll<V>([&](auto v) GW_LAMBDA { sum[p * V + v] += load(t.residual + p * k.y_pixel + (v == 0 ? 0 : second)); });
    });
    activate_low(c.after, sum);
  }
  unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
    if (p >= t.stored) return;
    unroll<V>([&](auto v) GW_LAMBDA {
      Bfloat16* to = t.y + p * k.y_pixel + (v == 0 ? 0 : second);
      if (!Late || t.skipped[v] == 0) return store_low<Native>(to, sum[p * V + v], kLanes);
      Bfloat16 made[kLanes];
      store_low<Native>(made, sum[p * V + v], kLanes);
      std::copy(made + t.skipped[v], made + kLanes, to + t.skipped[v]);
    });
  });
}

template <bool Native, int V, bool Late>
GW_INLINE void pick_grouped_tile(const LowGrouped& c, const LowWalk& k, const GroupedTile& t) {
  if (c.group == 2 && kLanes >= 4) return grouped_tile<Native, V, 2, Late>(c, k, t);
  if constexpr (kLanes > 4)
    if (c.group == 4) return grouped_tile<Native, V, 4, Late>(c, k, t);
  if constexpr (kLanes > 8)
    if (c.group == 8) return grouped_tile<Native, V, 8, Late>(c, k, t);
  grouped_tile<Native, V, 0, Late>(c, k, t);
}

// Computes a row of outputs of vectors [vectors.first, vectors.last).
template <bool Native>
inline void grouped_row(const LowGrouped& c, const LowWalk& k, const Bfloat16* x, Bfloat16* y, Range vectors) {
  const int64_t w_vector = c.taps() * c.inputs / 2 * kLowBlock;
  for (int64_t at = 0; at < c.w.out; at += kGroupedPixels)
    for (int64_t v = vectors.first, next; v < vectors.last; v = next) {
      next = std::min<int64_t>(vectors.last, v + kGroupedVectors);
      GroupedTile t{};
      t.column = at * c.w.stride - c.w.pad;
      t.stored = std::min<int64_t>(kGroupedPixels, c.w.out - at);
      const LowVector vector = vector_of(c, kLanes, v);
      t.skipped[0] = vector.skipped;
      if (next - v == 2) {
        const LowVector other = vector_of(c, kLanes, v + 1);
        t.input = other.input - vector.input;
        t.output = other.channel - vector.channel;
        t.skipped[1] = other.skipped;
      }
      t.x = x + t.column * c.x_strides.w + vector.input;
      t.w = c.pairs + v * w_vector;
      t.bias = c.bias + vector.channel;
      t.y = y + at * c.y_strides.w + vector.channel;
      t.residual = c.residual ? c.residual + (t.y - c.y) : nullptr;
      const bool late = t.skipped[0] + t.skipped[1] > 0, two = next - v == 2;
      if (two && !late) pick_grouped_tile<Native, 2, false>(c, k, t);
      if (two && late) pick_grouped_tile<Native, 2, true>(c, k, t);
      if (!two && !late) pick_grouped_tile<Native, 1, false>(c, k, t);
      if (!two && late) pick_grouped_tile<Native, 1, true>(c, k, t);
    }
}

}  // namespace groupwise::GW_TARGET
