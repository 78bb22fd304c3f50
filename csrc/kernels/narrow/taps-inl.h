// The sums of a tile of 8 neighbouring pixels: which of its inputs lie in the image, and the products of all its taps.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/clamp-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/tiles.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// How a tile walks the pixels and the packed kernel. Steps are in floats; columns are those of the input.
struct Walk {
  int64_t channels, rows, columns;  // of the kernel: channels of a group, and taps that lie in the image
  int64_t x_row, x_column, x_tap;   // x_column: between inputs that a tile reads; x_tap: between taps
  int64_t w_channel, w_row, w_column, w_vector, bias_vector;
  int64_t unit, tap, width;  // columns between inputs, between taps, and of the image
  int64_t left, right;       // the image's columns that are no padding
  int64_t vectors_a_group, x_group, y_pixel;
  bool add;
  int64_t fresh;  // rows of the kernel that no earlier output row has read, if they are prefetched, else 0
  Clamp clamp;
  Planes planes;
};

// Returns a bit for each input at column, column + unit, ... that lies in the image.
GW_INLINE uint32_t inputs_there(const Walk& k, int64_t column, int64_t inputs) {
  if (column >= 0 && column + (inputs - 1) * k.unit < k.width) return ~0u;
  const int64_t low = column >= 0 ? 0 : std::min<int64_t>(31, ceil_div(-column, k.unit));
  const int64_t high = column >= k.width ? 0 : std::min<int64_t>(31, ceil_div(k.width - column, k.unit));
  return ((1u << high) - 1) & ~((1u << low) - 1);
}

// Which inputs of a tile lie outside the image: none, the first, the last, or those that a mask tells. To ask the mask takes as
// long as the products (groups of 8, stride 2: the tile at the left edge took 1.9 times as long as the others).
enum class Edge { none, first, last, any };

// Tells whether `first` and `last` have tiles of their own. Lanes of few channels have too few products a tile to gain by it.
template <class Lanes, int S>
constexpr bool kDividesEdges = Lanes::kChannels == 8 || (Lanes::kChannels != 1 && S == 2);

// Returns the number of inputs that S * outputs of KW taps read.
template <int KW, int S>
constexpr int kInputs = S * (kPixelTile - 1) + KW;

// The sums of a tile. Eight are as many as two FMAs a cycle keep busy, if none ever waits.
template <class Lanes>
using TileSums = Vec[Lanes::kSums][kPixelTile];

// Adds KW neighbouring taps of every row of the kernel in one plane.
template <class Lanes, int KW, int S, Edge E>
GW_INLINE void sum_rows(const Walk& k, const Real* x, const Real* w, uint32_t there, TileSums<Lanes>& sum) {
  for (int64_t kh = 0; kh < k.rows; kh++, x += k.x_row, w += k.w_row) {
    const auto channel = [&](auto c, const Real* from, const Real* weights) GW_LAMBDA {
      Vec factor[KW];
      unroll<KW>([&](auto t) GW_LAMBDA {
        factor[t] = load(weights + t * k.w_column);
        pin(factor[t]);
      });
      constexpr int kFirst = E == Edge::first, kCount = kInputs<KW, S> - kFirst - (E == Edge::last);
      unroll<kCount>([&](auto n) GW_LAMBDA {
        constexpr int i = n + kFirst;
        if (E == Edge::any && !(there >> i & 1)) return;
        Vec in = Lanes::template take<c>(from + i * k.x_column);
        pin(in);
        unroll<KW>([&](auto t) GW_LAMBDA {
          constexpr int p = (i - t) / S;
          if constexpr (i >= t && (i - t) % S == 0 && p < kPixelTile) add_product(sum[Lanes::sum_of(c)][p], in, factor[t]);
        });
      });
    };
    if constexpr (Lanes::kChannels > 0) {
      unroll<Lanes::kChannels>([&](auto c) GW_LAMBDA { channel(c, x, w + c * k.w_channel); });
    } else {
      for (int64_t c = 0; c < k.channels; c++) channel(std::integral_constant<int, 0>{}, x + c, w + c * k.w_channel);
    }
  }
}

// Adds those of all planes.
template <class Lanes, int KW, int S, Edge E>
GW_INLINE void sum_taps(const Walk& k, const Real* x, const Real* w, uint32_t there, TileSums<Lanes>& sum) {
  for (int64_t left = k.planes.count; left > 0; left--, x += k.planes.x, w += k.planes.w)
    sum_rows<Lanes, KW, S, E>(k, x, w, there, sum);
}

// Adds the taps of a row in parts of at most kMost, as many as registers hold beside 8 sums and an input.
template <class Lanes, int S, Edge E>
GW_INLINE void sum_parts(const Walk& k, const Real* x, const Real* w, int64_t column, TileSums<Lanes>& sum) {
  constexpr int kMost = Lanes::kChannels == 1 ? kDepthwiseTaps : kGroupTaps;
  if (k.tap != k.unit) {
    // Outputs far apart read as many cache lines as there are of them, which rows a power of two apart would evict in turn.
    Walk row = k;
    row.rows = 1;
    for (int64_t kh = 0; kh < k.rows; kh++, x += k.x_row, w += k.w_row)
      for (int64_t kw = 0; kw < k.columns; kw++) {
        const uint32_t there = E == Edge::any ? inputs_there(k, column + kw * k.tap, kInputs<1, S>) : 0;
        sum_taps<Lanes, 1, S, E>(row, x + kw * k.x_tap, w + kw * k.w_column, there, sum);
      }
    return;
  }
  for (int64_t kw = 0; kw < k.columns;) {
    const int64_t left = k.columns - kw, take = ceil_div(left, ceil_div(left, kMost));
    const Real* from = x + kw * k.x_tap;
    const Real* taps = w + kw * k.w_column;
    const uint32_t there = E == Edge::any ? inputs_there(k, column + kw * k.tap, S * (kPixelTile - 1) + take) : 0;
    if constexpr (kMost >= 7) {
      if (take == 7) sum_taps<Lanes, 7, S, E>(k, from, taps, there, sum);
      if (take == 6) sum_taps<Lanes, 6, S, E>(k, from, taps, there, sum);
    }
    if constexpr (kMost >= 5) {
      if (take == 5) sum_taps<Lanes, 5, S, E>(k, from, taps, there, sum);
      if (take == 4) sum_taps<Lanes, 4, S, E>(k, from, taps, there, sum);
    }
    if (take == 3) sum_taps<Lanes, 3, S, E>(k, from, taps, there, sum);
    if (take == 2) sum_taps<Lanes, 2, S, E>(k, from, taps, there, sum);
    if (take == 1) sum_taps<Lanes, 1, S, E>(k, from, taps, there, sum);
    kw += take;
  }
}

}  // namespace groupwise::GW_TARGET
