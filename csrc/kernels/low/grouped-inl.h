// Convolutions of groups of several channels: sums of products of pairs of inputs. A vector holds outputs of several groups, each of
// which meets the inputs of its own, or outputs of one group.
#pragma once
#include <algorithm>

#include "kernels/low/common-inl.h"

namespace groupwise::GW_TARGET {

// Images of 7, 14, 28, 56 and 112 columns divide into tiles of 7 pixels.
constexpr int kGroupedPixels = 7, kGroupedVectors = 2;

// A tile of one row of outputs.
struct GroupedTile {
  const Bfloat16* x;
  const Bfloat16* w;
  const float* bias;
  Bfloat16* y;
  const Bfloat16* residual;
  int64_t column, stored;
  int64_t skipped;  // the lanes that the vector before stores
};

// Adds a tap of G channels a group, where several groups share a vector, or of any where G is 0. `x` returns where the inputs
// of a pixel are, or null if it lies outside the image, which none does where it is not asked.
template <bool Native, int V, int G, bool Asked, class X>
GW_INLINE void add_tap(const LowGrouped& c, const Bfloat16* w, int64_t w_vector, X&& x, Vec (&sum)[kGroupedPixels * V]) {
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
        std::memcpy(&in, from + v * kLanes, sizeof in);
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
    const bool one = V == 1 || c.group > kLanes;
    for (int64_t pair = 0; pair < c.group / 2; pair++) {
      Words some[V];
      unroll<V>([&](auto v) GW_LAMBDA { some[v] = weights(v, pair); });
      unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
        const Bfloat16* from = x(p);
        if (Asked && !from) return;
        unroll<V>([&](auto v) GW_LAMBDA {
          uint32_t both;
          std::memcpy(&both, from + 2 * pair + (one ? 0 : v * c.group), sizeof both);
          add_pairs<Native>(sum[p * V + v], both + Words{}, some[v]);
        });
      });
    }
  }
}

template <bool Native, int V, int G>
GW_NOINLINE void grouped_tile(const LowGrouped& c, const LowWalk& k, const GroupedTile& t) {
  Vec sum[kGroupedPixels * V];
  unroll<V>([&](auto v) GW_LAMBDA {
    const Vec bias = load(t.bias + v * kLanes);
    unroll<kGroupedPixels>([&](auto p) GW_LAMBDA { sum[p * V + v] = bias; });
  });
  const int64_t w_tap = c.group / 2 * kLowBlock, w_vector = c.h.kernel * c.w.kernel * w_tap;
  const int64_t last = t.column + (kGroupedPixels - 1) * k.step + (k.columns - 1) * k.tap;
  const bool inside = t.column >= 0 && last < k.width;
  for (int64_t row = 0; row < k.rows; row++)
    for (int64_t tap = 0; tap < k.columns; tap++) {
      const Bfloat16* from = t.x + row * k.x_row + tap * k.tap * k.x_column;
      const Bfloat16* w = t.w + ((k.first_row + row) * k.columns + tap) * w_tap;
      const int64_t x_pixel = k.step * k.x_column;
      if (inside) {
        add_tap<Native, V, G, false>(c, w, w_vector, [&](int64_t p) GW_LAMBDA { return from + p * x_pixel; }, sum);
      } else {
        const int64_t column = t.column + tap * k.tap;
        add_tap<Native, V, G, true>(
            c, w, w_vector,
            [&](int64_t p) GW_LAMBDA {
              const int64_t at = column + p * k.step;
              return at >= 0 && at < k.width ? from + p * x_pixel : nullptr;
            },
            sum);
      }
    }
  activate_low(c.before, sum);
  if (t.residual) {
    unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
      if (p >= t.stored) return;
      unroll<V>([&](auto v) GW_LAMBDA { sum[p * V + v] += load(t.residual + p * k.y_pixel + v * kLanes); });
    });
    activate_low(c.after, sum);
  }
  unroll<kGroupedPixels>([&](auto p) GW_LAMBDA {
    if (p >= t.stored) return;
    Bfloat16* to = t.y + p * k.y_pixel;
    if (t.skipped == 0) {
      unroll<V>([&](auto v) GW_LAMBDA { store_low<Native>(to + v * kLanes, sum[p * V + v], kLanes); });
    } else {
      Bfloat16 made[kLanes];
      store_low<Native>(made, sum[p * V], kLanes);
      std::copy(made + t.skipped, made + kLanes, to + t.skipped);
    }
  });
}

template <bool Native, int V>
GW_INLINE void pick_grouped_tile(const LowGrouped& c, const LowWalk& k, const GroupedTile& t) {
  if (c.group == 2 && kLanes >= 4) return grouped_tile<Native, V, 2>(c, k, t);
  if constexpr (kLanes > 4)
    if (c.group == 4) return grouped_tile<Native, V, 4>(c, k, t);
  if constexpr (kLanes > 8)
    if (c.group == 8) return grouped_tile<Native, V, 8>(c, k, t);
  grouped_tile<Native, V, 0>(c, k, t);
}

// Computes a row of outputs of vectors [vectors.first, vectors.last).
template <bool Native>
inline void grouped_row(const LowGrouped& c, const LowWalk& k, const Bfloat16* x, Bfloat16* y, Range vectors) {
  const int64_t w_vector = c.h.kernel * c.w.kernel * c.group / 2 * kLowBlock;
  for (int64_t at = 0; at < c.w.out; at += kGroupedPixels)
    for (int64_t v = vectors.first, next; v < vectors.last; v = next) {
      next = std::min<int64_t>(vectors.last, v + kGroupedVectors);
      GroupedTile t{};
      t.column = at * c.w.stride - c.w.pad;
      t.stored = std::min<int64_t>(kGroupedPixels, c.w.out - at);
      // The last vector begins early where it would end late.
      const int64_t channel = std::min<int64_t>(v * kLanes, c.channels - kLanes);
      t.skipped = v * kLanes - channel;
      t.x = x + t.column * c.x_strides.w + (c.group > kLanes ? channel / c.group * c.group : channel);
      t.w = c.pairs + v * w_vector;
      t.bias = c.bias + channel;
      t.y = y + at * c.y_strides.w + channel;
      t.residual = c.residual ? c.residual + (t.y - c.y) : nullptr;
      // Two vectors are of one group, or of groups that each fill one.
      const bool two =
          next - v == 2 && (c.group <= kLanes ? next * kLanes <= c.channels : v * kLanes % c.group + 2 * kLanes <= c.group);
      if (two) {
        pick_grouped_tile<Native, 2>(c, k, t);
      } else {
        next = v + 1;
        pick_grouped_tile<Native, 1>(c, k, t);
      }
    }
}

}  // namespace groupwise::GW_TARGET
