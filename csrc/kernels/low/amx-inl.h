// Products of pixels and weights by AMX, whose instructions multiply tiles of 16 rows of 32 bfloat16 numbers. They are assembly, so
// that the instruction set stays that of all AVX-512 kernels; `multiplies_tiles` tells whether the processor has them.
#pragma once
#include <algorithm>

#include "kernels/low/amx.h"
#include "kernels/low/finish-inl.h"

#if GW_LANES == 16

namespace groupwise::GW_TARGET {

// Tiles 0 to 3 sum two rows of tiles by two columns, 4 and 5 hold pixels and weights, and 6 and 7 the inputs that are left behind
// the last 32: those hold `rest` inputs of a pixel. Tiles of weights and sums have `columns` outputs.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int64_t rest, int64_t columns) {
    for (int i = 0; i < 8; i++) row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 6 ? 64 : 4 * columns), rows[i] = 16;
    if (rest == 0) return;
    row_bytes[6] = static_cast<uint16_t>(2 * rest);
    rows[7] = static_cast<uint8_t>(rest / 2);
  }
};

// Configures the tiles of this thread, and leaves them as they were: oneDNN may count on its own.
class Tiles {
 public:
  explicit Tiles(int64_t rest, int64_t columns = kLanes) {
    const TileShapes shapes(rest, columns);
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~Tiles() {
    if (before_[0] == 0) {
      asm volatile("tilerelease");
    } else {
      asm volatile("ldtilecfg %0" ::"m"(before_));
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

template <int Tile>
GW_INLINE void load_tile(const void* from, int64_t row) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row), "i"(Tile) : "memory");
}
template <int Tile>
GW_INLINE void store_tile(void* to, int64_t row) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row), "i"(Tile) : "memory");
}
template <int Sum, int X, int W>
GW_INLINE void add_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

constexpr int64_t kTileRows = 16, kTilePixels = 2 * kTileRows, kTileInputs = 32, kTileVectors = 2;

// Adds the products of the next inputs to the sums of two rows of tiles by V columns, whose weights are w_column numbers apart.
template <int V, int X, int W>
GW_INLINE void add_inputs(const Bfloat16* x, int64_t x_tile, int64_t x_row, const Bfloat16* w, int64_t w_row,
                          int64_t w_column) {
  load_tile<X>(x, x_row);
  load_tile<W>(w, w_row);
  add_tiles<0, X, W>();
  if constexpr (V == 2) {
    load_tile<W>(w + w_column, w_row);
    add_tiles<1, X, W>();
  }
  load_tile<X>(x + x_tile, x_row);
  add_tiles<V + 1, X, W>();
  if constexpr (V == 2) {
    load_tile<W>(w, w_row);
    add_tiles<2, X, W>();
  }
}

GW_INLINE void clear_sums() { asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3"); }

// Stores the sums of two rows of tiles by V columns, to rows of kRow floats.
template <int V, int64_t kRow>
GW_INLINE void store_sums(float* sums) {
  store_tile<0>(sums, kRow * 4);
  if constexpr (V == 2) store_tile<1>(sums + kLanes, kRow * 4);
  store_tile<2>(sums + kTileRows * kRow, kRow * 4);
  if constexpr (V == 2) store_tile<3>(sums + kTileRows * kRow + kLanes, kRow * 4);
}

// Computes V vectors of outputs of kTilePixels pixels from `t.x` on, of which the first `skip` are not stored.
template <int V>
GW_INLINE void tiles_of_pixels(const LowProduct& c, const LowTileOfPixels& t, int64_t skip) {
  constexpr int64_t kWeightRow = kLowVectors * kLanes * 2;
  alignas(64) float sums[kTilePixels * V * kLanes];
  clear_sums();
  const int64_t x_row = c.x_pixel * 2, w_row = kWeightRow * 2, x_tile = kTileRows * c.x_pixel;
  const int64_t whole = c.inputs / kTileInputs * kTileInputs;
  const auto weights = [&](int64_t i) GW_LAMBDA { return t.w + i / 2 * kWeightRow; };
  for (int64_t i = 0; i < whole; i += kTileInputs) add_inputs<V, 4, 5>(t.x + i, x_tile, x_row, weights(i), w_row, 2 * kLanes);
  if (whole < c.inputs) add_inputs<V, 6, 7>(t.x + whole, x_tile, x_row, weights(whole), w_row, 2 * kLanes);
  constexpr int64_t kRow = V * kLanes;
  store_sums<V, kRow>(sums);
  constexpr int P = 8;
  for (int64_t p = skip; p < t.rows; p += P) {
    LowTileOfPixels part = t;
    part.y = t.y + p * c.y_pixel;
    part.rows = std::min<int64_t>(P, t.rows - p);
    Vec sum[P * V];
    unroll<P>([&](auto q) GW_LAMBDA {
      const float* from = sums + std::min<int64_t>(p + q, t.rows - 1) * kRow;
      unroll<V>([&](auto v) GW_LAMBDA { sum[q * V + v] = load(from + v * kLanes) + load(t.bias + v * kLanes); });
    });
    finish_low<true, V, P>(c, part, sum);
  }
}

// Computes pixels [pixels.first, pixels.last) of blocks of outputs. There are at least kTilePixels pixels in all.
GW_NOINLINE void product_by_tiles(const LowProduct& c, Range pixels, Range blocks) {
  constexpr int64_t kBlock = kLowVectors * kLanes, kColumns = kTileVectors * kLanes;
  const Tiles tiles(c.inputs % kTileInputs);
  // The weights of two vectors stay in the L1 cache for some pixels, which stay in the L2 cache for all weights.
  const int64_t step = std::max<int64_t>(kTilePixels, 128 * 1024 / c.inputs / kTilePixels * kTilePixels);
  for (int64_t first = pixels.first; first < pixels.last; first += step) {
    const int64_t last = std::min(pixels.last, first + step);
    for (int64_t o = blocks.first * kBlock; o < std::min(blocks.last * kBlock, c.outputs); o += kColumns) {
      for (int64_t p = first; p < last; p += kTilePixels) {
        // The last tile begins early where it would end late.
        const int64_t from = std::min(p, c.pixels - kTilePixels);
        const LowTileOfPixels tile{c.x + from * c.x_pixel,
                                   c.packed + o / kBlock * kBlock * c.inputs + o % kBlock * 2,
                                   c.bias + o,
                                   c.y + from * c.y_pixel + o,
                                   std::min(last - from, kTilePixels),
                                   std::min(kColumns, c.outputs - o)};
        if (tile.count > kLanes) {
          tiles_of_pixels<2>(c, tile, p - from);
        } else {
          tiles_of_pixels<1>(c, tile, p - from);
        }
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET

#endif
