// Tiles of wide groups whose taps of a row share inputs: each input is broadcast once for up to three neighbouring taps, so
// that 42 FMAs take 19 loads. A tile has 32 registers: the sums of `R` rows x `PX` pixels x `OV` vectors, three taps' weights
// and an input.
#pragma once
#include "kernels/channels_layout.h"
#include "kernels/pixels-inl.h"
#include "kernels/tiles.h"

namespace groupwise::GW_TARGET {

// The taps that a tile sums, which are neighbours along the width. Steps are in floats.
struct RowWalk {
  int64_t rows, columns, channels;
  int64_t x_row, x_pixel;            // between taps
  int64_t w_row, w_column, w_block;  // between taps, and between the packed weights of two vectors of outputs
  int64_t out_row;                   // of the input, between rows of outputs
};

// Adds the products of T neighbouring taps to the sums; outputs are S inputs apart.
template <int T, int S, int OV, int R, int PX>
GW_INLINE void add_taps(const RowWalk& k, const Real* x, const Real* w, Vec (&sum)[R][PX][OV]) {
  constexpr int kInputs = (PX - 1) * S + T, kBases = (kInputs + 4) / 5;
  // x86 addresses have a base and one step times 1, 2 or 4: two steps and a base for each five pixels reach all of them.
  int64_t one = k.x_pixel, three = 3 * k.x_pixel;
  asm volatile("" : "+r"(one), "+r"(three));
  const Real* base[R][kBases];
  unroll<R>([&](auto r) GW_LAMBDA {
    unroll<kBases>([&](auto b) GW_LAMBDA {
      base[r][b] = x + r * k.out_row + 5 * b * k.x_pixel;
      asm volatile("" : "+r"(base[r][b]));
    });
  });
  for (int64_t c = 0; c < k.channels; c++, w += kGroupBlock) {
    Vec factor[T][OV];
    unroll<T>([&](auto t) GW_LAMBDA {
      unroll<OV>([&](auto v) GW_LAMBDA {
        factor[t][v] = load(w + t * k.w_column + v * k.w_block);
        pin(factor[t][v]);
      });
    });
    unroll<R>([&](auto r) GW_LAMBDA {
      unroll<kInputs>([&](auto j) GW_LAMBDA {
        constexpr int kStep = j % 5;
        const Vec in = broadcast(base[r][j / 5][kStep == 3 ? three : kStep * one]);
        unroll<T>([&](auto t) GW_LAMBDA {
          constexpr int kFrom = j - t;
          if constexpr (kFrom >= 0 && kFrom % S == 0 && kFrom / S < PX)
            unroll<OV>([&](auto v) GW_LAMBDA { add_product(sum[r][kFrom / S][v], factor[t][v], in); });
        });
      });
      unroll<kBases>([&](auto b) GW_LAMBDA { base[r][b]++; });
    });
  }
}

// Outputs of a tile: `rows` x `columns` of them are stored, or added to what is there.
struct RowTile {
  const Real* x;
  Real* y;
  int64_t y_row, y_pixel, rows, columns, outputs;
  bool add;
};

template <int S, int OV, int R, int PX>
GW_NOINLINE void row_tile(const RowWalk& k, const RowTile& tile, const Real* w, const Vec* bias) {
  Vec sum[R][PX][OV];
  unroll<R>([&](auto r) GW_LAMBDA {
    unroll<PX>([&](auto p) GW_LAMBDA { unroll<OV>([&](auto v) GW_LAMBDA { sum[r][p][v] = bias[v]; }); });
  });
  for (int64_t kh = 0; kh < k.rows; kh++) {
    const Real *x = tile.x + kh * k.x_row, *weight = w + kh * k.w_row;
    int64_t left = k.columns;
    for (; left >= 3; left -= 3, x += 3 * k.x_pixel, weight += 3 * k.w_column) add_taps<3, S>(k, x, weight, sum);
    if (left == 2) add_taps<2, S>(k, x, weight, sum);
    if (left == 1) add_taps<1, S>(k, x, weight, sum);
  }
  unroll<R>([&](auto r) GW_LAMBDA {
    unroll<PX>([&](auto p) GW_LAMBDA {
      unroll<OV>([&](auto v) GW_LAMBDA {
        if (r < tile.rows && p < tile.columns && v * kLanes < tile.outputs)
          put(tile.y + r * tile.y_row + p * tile.y_pixel + v * kLanes, sum[r][p][v], tile.outputs - v * kLanes, tile.add);
      });
    });
  });
}
// The rows of a strip: their phase, whole and as clipped for the strip, the first one's number among the outputs, and the
// floats between rows of the input and of the packed weights.
struct StripRows {
  const Phase &all, &strip;
  int64_t first, x_row, w_row;
};

template <int S, int OV, int R, int PX>
inline void run_tiles(const RowWalk& walk, const StripRows& s, const PixelBlock& b, const Real* w, const Vec* bias,
                      int64_t outputs, bool add, int64_t r, int64_t rows) {
  // The taps of rows of padding are left out.
  const Phase h = clipped(s.all, s.first + r, rows);
  RowWalk k = walk;
  k.rows = h.taps;
  k.out_row = rows > 1 ? b.x_row : 0;
  const Real* x = b.x + r * b.x_row;
  if (h.taps > 0) x += (h.low - s.strip.low) * s.x_row, w += (h.index - s.strip.index) * s.w_row;
  for (int64_t column = 0; column < b.columns; column += PX)
    row_tile<S, OV, R, PX>(k,
                           {x + column * b.x_pixel, b.y + r * b.y_row + column * b.y_pixel, b.y_row, b.y_pixel, rows,
                            b.columns - column, outputs, add},
                           w, bias);
}

// Computes a strip of outputs of up to two vectors. It is a template so that tiles are compiled only where registers suffice.
template <bool Many>
inline void run_rows(const RowWalk& k, const StripRows& s, const PixelBlock& b, const Real* w, const Vec* bias, int64_t outputs,
                     bool add) {
  if constexpr (Many) {
    const int64_t vectors = outputs > kLanes ? 2 : 1;
    const RowTiles tiles = row_tiles(b.rows, b.columns, vectors);
    const bool two = b.x_pixel != k.x_pixel;
    for (int64_t r = 0; r < b.rows; r += tiles.rows) {
      const int64_t rows = std::min(tiles.rows, b.rows - r);
      const auto run = [&]<int OV, int R, int PX>() {
        if (two) {
          run_tiles<2, OV, R, PX>(k, s, b, w, bias, outputs, add, r, rows);
        } else {
          run_tiles<1, OV, R, PX>(k, s, b, w, bias, outputs, add, r, rows);
        }
      };
      if (vectors == 2) {
        if (tiles.pixels == 7) run.template operator()<2, 1, 7>();
        if (tiles.pixels == 8) run.template operator()<2, 1, 8>();
        if (tiles.pixels == 10) run.template operator()<2, 1, 10>();
      } else {
        if (tiles.pixels == 7 && rows == 1) run.template operator()<1, 1, 7>();
        if (tiles.pixels == 7 && rows == 2) run.template operator()<1, 2, 7>();
        if (tiles.pixels == 8) run.template operator()<1, 2, 8>();
        if (tiles.pixels == 10) run.template operator()<1, 2, 10>();
        if (tiles.pixels == 14) run.template operator()<1, 1, 14>();
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
