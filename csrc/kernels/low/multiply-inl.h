// Tiles of pixels by vectors of outputs, which stay in registers while pairs of inputs are multiplied.
#pragma once
#include <algorithm>

#include "kernels/low/amx-inl.h"
#include "kernels/low/finish-inl.h"

namespace groupwise::GW_TARGET {

// Computes V vectors of outputs of P pixels; the last pixel stands in for those that are missing.
template <bool Native, int V>
GW_NOINLINE void product_tile(const LowProduct& c, const LowTileOfPixels& t) {
  constexpr int P = kLowSums / V, kStep = kLowVectors * kLanes * 2;
  Vec sum[P * V];
  unroll<V>([&](auto v) GW_LAMBDA {
    const Vec bias = load(t.bias + v * kLanes);
    unroll<P>([&](auto p) GW_LAMBDA { sum[p * V + v] = bias; });
  });
  const Bfloat16* x[P];
  unroll<P>([&](auto p) GW_LAMBDA { x[p] = t.x + std::min<int64_t>(p, t.rows - 1) * c.x_pixel; });
  const Bfloat16* w = t.w;
  for (int64_t i = 0; i < c.inputs; i += 2, w += kStep) {
    Words weights[V];
    unroll<V>([&](auto v) GW_LAMBDA { std::memcpy(&weights[v], w + v * kLanes * 2, sizeof(Words)); });
    unroll<P>([&](auto p) GW_LAMBDA {
      uint32_t pair;
      std::memcpy(&pair, x[p] + i, sizeof pair);
      const Words pairs = pair + Words{};
      unroll<V>([&](auto v) GW_LAMBDA { add_pairs<Native>(sum[p * V + v], pairs, weights[v]); });
    });
  }
  finish_low<Native, V, P>(c, t, sum);
}

template <bool Native>
GW_INLINE void product_of(const LowProduct& c, Range pixels, Range blocks) {
  constexpr int64_t kBlock = kLowVectors * kLanes;
  // Computes all pixels of a range for one block.
  const auto block = [&](int64_t b, int64_t first, int64_t last) GW_LAMBDA {
    const int64_t outputs = std::min(kBlock, c.outputs - b * kBlock);
    const auto tiles = [&](auto vectors) GW_LAMBDA {
      constexpr int64_t kPixels = kLowSums / vectors;
      for (int64_t p = first; p < last; p += kPixels) {
        const LowTileOfPixels tile{c.x + p * c.x_pixel,         c.packed + b * kBlock * c.inputs,
                                   c.bias + b * kBlock,         c.y + p * c.y_pixel + b * kBlock,
                                   std::min(kPixels, last - p), outputs};
        product_tile<Native, vectors>(c, tile);
      }
    };
    if (outputs > 3 * kLanes) return tiles(std::integral_constant<int, 4>{});
    if (outputs > 2 * kLanes) return tiles(std::integral_constant<int, 3>{});
    if (outputs > kLanes) return tiles(std::integral_constant<int, 2>{});
    tiles(std::integral_constant<int, 1>{});
  };
  // Few weights stay in the L1 cache, so that a pixel is read, and written, at once; of many, each block stays for some pixels.
  const bool few = (blocks.last - blocks.first) * kBlock * c.inputs <= 12 * 1024;
  const int64_t step = few ? kLowSums : std::max<int64_t>(kLowSums, 32 * 1024 / c.inputs / kLowSums * kLowSums);
  for (int64_t p = pixels.first; p < pixels.last; p += step)
    for (int64_t b = blocks.first; b < blocks.last; b++) block(b, p, std::min(pixels.last, p + step));
}

void multiply_low(const LowProduct& work, Range pixels, Range blocks) {
  const LowProduct c = work;
#if GW_LANES == 16
  // Few pixels, or inputs, do not fill tiles.
  if (multiplies_pairs() && multiplies_tiles() && c.pixels >= kTilePixels && c.inputs >= kTileInputs / 2)
    return product_by_tiles(c, pixels, blocks);
#endif
  if (multiplies_pairs()) {
    product_of<GW_LANES == 16>(c, pixels, blocks);
  } else {
    product_of<false>(c, pixels, blocks);
  }
}

}  // namespace groupwise::GW_TARGET
