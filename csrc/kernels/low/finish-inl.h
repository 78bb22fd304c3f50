// What a product does with the sums of a tile.
#pragma once
#include <algorithm>

#include "kernels/low/common-inl.h"
#include "kernels/low/product.h"

namespace groupwise::GW_TARGET {

// The vectors of a block, and the sums of a tile.
constexpr int kLowVectors = 4, kLowSums = kRegisters * 3 / 4;

// A tile of `rows` pixels from x on, and `count` outputs from y on.
struct LowTileOfPixels {
  const Bfloat16 *x, *w;
  const float* bias;
  Bfloat16* y;
  int64_t rows, count;
};

// Activates V vectors of sums of P pixels, adds the residual and stores those that the tile has.
template <bool Native, int V, int P>
GW_INLINE void finish_low(const LowProduct& c, const LowTileOfPixels& t, Vec (&sum)[P * V]) {
  activate_low(c.before, sum);
  const auto count = [&](int64_t v) GW_LAMBDA { return t.count - v * kLanes; };
  if (c.residual) {
    const Bfloat16* from = c.residual + (t.y - c.y);
    unroll<P>([&](auto p) GW_LAMBDA {
      if (p >= t.rows) return;
      unroll<V>([&](auto v) GW_LAMBDA {
        sum[p * V + v] += load_some(from + p * c.y_pixel + v * kLanes, std::min<int64_t>(kLanes, count(v)));
      });
    });
    activate_low(c.after, sum);
  }
  unroll<P>([&](auto p) GW_LAMBDA {
    if (p >= t.rows) return;
    unroll<V>([&](auto v) GW_LAMBDA { store_low<Native>(t.y + p * c.y_pixel + v * kLanes, sum[p * V + v], count(v)); });
  });
}

}  // namespace groupwise::GW_TARGET
