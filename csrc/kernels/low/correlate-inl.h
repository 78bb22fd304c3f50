// Depthwise convolutions of bfloat16 images. A tile computes some neighbouring pixels of 2 * kLanes channels, the even ones in one
// vector and the odd ones in another, and loads every input once for all taps of a row that meet it.
#pragma once
#include <algorithm>

#include "kernels/low/common-inl.h"
#include "kernels/low/grouped-inl.h"
#include "kernels/low/grouped_amx-inl.h"
#include "kernels/low/low.h"

namespace groupwise::GW_TARGET {

constexpr int kLowPixels = low_pixels(kLanes);

// One tile of one block. `column` is that of the first input. Lanes [first, count) are stored, of `stored` pixels. Bit i of `there`
// tells whether the input i columns further lies in the image.
struct LowTile {
  const Bfloat16* x;
  const float* w;
  Bfloat16* y;
  const Bfloat16* residual;
  int64_t column, stored, first, count;
  uint64_t there;
};

// Applies the epilogue to the sums, the even and the odd channels of each pixel in turn, and stores them.
template <bool Whole>
GW_INLINE void finish_low(const LowWalk& k, const LowTile& t, Vec (&v)[2 * kLowPixels]) {
  activate_low(*k.before, v);
  if (k.residual) {
    unroll<kLowPixels>([&](auto p) GW_LAMBDA {
      if (p >= t.stored) return;
      const Bfloat16* from = t.residual + p * k.y_pixel;
      const Pairs added = Whole ? load_both(from) : load_both_some(from, t.count);
      v[2 * p] += added.even;
      v[2 * p + 1] += added.odd;
    });
    activate_low(*k.after, v);
  }
  unroll<kLowPixels>([&](auto p) GW_LAMBDA {
    if (p >= t.stored) return;
    const Words made = rounded_pairs(k.native, {v[2 * p], v[2 * p + 1]});
    if (Whole && t.first == 0) {
      store_both(t.y + p * k.y_pixel, made);
    } else {
      store_both_some(t.y + p * k.y_pixel, made, t.first, t.count);
    }
  });
}

// Computes a tile of KW neighbouring taps a row and outputs that are S inputs apart; KW = 0 stands for any taps and outputs. A tile
// inside the image asks no mask, and one of whole blocks loads without one.
template <int KW, int S, bool Inside, bool Whole>
GW_NOINLINE void low_tile(const LowWalk& k, const LowTile& t) {
  Vec sum[2 * kLowPixels];
  unroll<kLowPixels>([&](auto p) GW_LAMBDA {
    sum[2 * p] = load(t.w);
    sum[2 * p + 1] = load(t.w + kLanes);
  });
  const Bfloat16* x = t.x;
  const int64_t w_row = k.columns * kLowBlock;
  const float* w = t.w + kLowBlock + k.first_row * w_row;
  const auto read = [&](const Bfloat16* from) GW_LAMBDA { return Whole ? load_both(from) : load_both_some(from, t.count); };
  for (int64_t row = 0; row < k.rows; row++, x += k.x_row, w += w_row) {
    if constexpr (KW > 0) {
      // Behind each question whether an input is there they would be loaded again, and GCC 12 loads them again for a lambda that returns one.
      constexpr int kVectors = 2 * (kLowPixels + KW);
      Vec weight[2 * KW];
      if constexpr (kVectors <= kRegisters)
        unroll<2 * KW>([&](auto i) GW_LAMBDA {
          weight[i] = load(w + i * kLanes);
          if constexpr (!Inside && kVectors + 3 <= kRegisters) pin(weight[i]);
        });
      unroll<S*(kLowPixels - 1) + KW>([&](auto i) GW_LAMBDA {
        if (!Inside && !(t.there >> i & 1)) return;
        const Pairs in = read(x + i * k.x_column);
        unroll<KW>([&](auto tap) GW_LAMBDA {
          constexpr int p = (i - tap) / S;
          if constexpr (i >= tap && (i - tap) % S == 0 && p < kLowPixels) {
            if constexpr (kVectors <= kRegisters) {
              add_product(sum[2 * p], in.even, weight[2 * tap]);
              add_product(sum[2 * p + 1], in.odd, weight[2 * tap + 1]);
            } else {
              add_product(sum[2 * p], in.even, load(w + tap * kLowBlock));
              add_product(sum[2 * p + 1], in.odd, load(w + tap * kLowBlock + kLanes));
            }
          }
        });
      });
    } else {
      for (int64_t tap = 0; tap < k.columns; tap++) {
        const Vec first = load(w + tap * kLowBlock), second = load(w + tap * kLowBlock + kLanes);
        unroll<kLowPixels>([&](auto p) GW_LAMBDA {
          const int64_t column = tap * k.tap + p * k.step;
          if (t.column + column < 0 || t.column + column >= k.width) return;
          const Pairs in = read(x + column * k.x_column);
          add_product(sum[2 * p], in.even, first);
          add_product(sum[2 * p + 1], in.odd, second);
        });
      }
    }
  }
  finish_low<Whole>(k, t, sum);
}

template <int KW, int S>
GW_INLINE void pick_low_tile(const LowWalk& k, const LowTile& t, bool inside, bool whole) {
  if (whole) return inside ? low_tile<KW, S, true, true>(k, t) : low_tile<KW, S, false, true>(k, t);
  low_tile<KW, S, false, false>(k, t);
}

// Computes a row of outputs of blocks [blocks.first, blocks.last).
template <int KW, int S>
inline void low_row(const LowGrouped& c, const LowWalk& k, const Bfloat16* x, Bfloat16* y, Range blocks) {
  const int64_t taps = c.taps();
  const int64_t inputs = S * (kLowPixels - 1) + KW;
  for (int64_t at = 0; at < c.w.out; at += kLowPixels) {
    LowTile t{};
    const int64_t column = t.column = at * c.w.stride - c.w.pad;
    t.stored = std::min<int64_t>(kLowPixels, c.w.out - at);
    const bool inside = column >= 0 && column + inputs <= c.w.in;
    t.there = inside ? ~uint64_t{0} : 0;
    for (int64_t i = 0; i < inputs && !inside; i++)
      if (column + i >= 0 && column + i < c.w.in) t.there |= uint64_t{1} << i;
    for (int64_t b = blocks.first; b < blocks.last; b++) {
      const int64_t first = std::max<int64_t>(0, std::min(b * kLowBlock, c.channels - kLowBlock));
      t.first = b * kLowBlock - first;
      t.count = std::min<int64_t>(kLowBlock, c.channels - first);
      t.x = x + column * c.x_strides.w + first;
      t.w = c.packed + b * kLowBlock * (1 + taps);
      t.y = y + at * c.y_strides.w + first;
      t.residual = c.residual ? c.residual + (t.y - c.y) : nullptr;
      pick_low_tile<KW, S>(k, t, inside, t.count == kLowBlock);
    }
  }
}

// Kernels 3, 5 and 7 columns wide have tiles of their own; those of 1 and 2 are phases of a gradient with a stride, too.
GW_INLINE void low_rows(const LowGrouped& c, const LowWalk& k, const Bfloat16* x, Bfloat16* y, Range blocks) {
  const auto run = [&](auto columns) GW_LAMBDA {
    if (c.w.stride == 1) return low_row<columns, 1>(c, k, x, y, blocks);
    low_row<columns, 2>(c, k, x, y, blocks);
  };
  if (c.w.kernel == 1 && c.w.stride == 1) return low_row<1, 1>(c, k, x, y, blocks);
  if (c.w.kernel == 2 && c.w.stride == 1 && c.w.dilation == 1) return low_row<2, 1>(c, k, x, y, blocks);
  const bool near = c.w.dilation == 1 && c.w.stride <= 2;
  if (near && c.w.kernel == 3) return run(std::integral_constant<int, 3>{});
  if (near && c.w.kernel == 5) return run(std::integral_constant<int, 5>{});
  if (near && c.w.kernel == 7) return run(std::integral_constant<int, 7>{});
  low_row<0, 1>(c, k, x, y, blocks);
}

// What a task computes: a row of outputs of a sample, and one of the parts of the channels.
struct LowRow {
  LowWalk walk;
  const Bfloat16* x;
  Bfloat16* y;
  int64_t part;
};

inline LowRow low_row_of(const LowGrouped& c, int64_t task) {
  const int64_t row = task % c.h.out, part = task / c.h.out % c.parts, n = task / (c.h.out * c.parts);
  const int64_t at = row * c.h.stride - c.h.pad, spacing = c.h.dilation;
  const int64_t first = at >= 0 ? 0 : ceil_div(-at, spacing);
  const int64_t last = at >= c.h.in ? 0 : std::min(c.h.kernel, ceil_div(c.h.in - at, spacing));
  const LowWalk walk{first,
                     std::max<int64_t>(0, last - first),
                     c.w.kernel,
                     spacing * c.x_strides.h,
                     c.x_strides.w,
                     c.w.dilation,
                     c.w.stride,
                     c.w.in,
                     c.y_strides.w,
                     &c.before,
                     &c.after,
                     c.residual != nullptr,
                     multiplies_pairs()};
  return {walk, c.x + n * c.x_strides.n + (at + first * spacing) * c.x_strides.h, c.y + n * c.y_strides.n + row * c.y_strides.h,
          part};
}

template <bool Native>
GW_INLINE void grouped_rows(const LowGrouped& c, int64_t begin, int64_t end) {
  const int64_t vectors = c.vectors(kLanes), part = round_up(ceil_div(vectors, c.parts), kGroupedVectors);
  // Few weights stay in the cache, so that a row is read at once; of many, each vector's stay for all rows.
  const bool few = c.channels * c.inputs * c.taps() <= 24 * 1024;
  const int64_t step = few ? part : kGroupedVectors;
  for (int64_t first = 0; first < part; first += step)
    for (int64_t task = begin; task < end; task++) {
      const LowRow row = low_row_of(c, task);
      const int64_t from = row.part * part + first;
      grouped_row<Native>(c, row.walk, row.x, row.y, Range{from, std::min({vectors, from + step, (row.part + 1) * part})});
    }
}

void correlate_low(const LowGrouped& given, int64_t begin, int64_t end) {
  const LowGrouped c = given;
  if (c.group > 1) {
#if GW_LANES == 16
    if (c.rows > 0) return grouped_bands(c, begin, end);
#endif
    if (multiplies_pairs()) return grouped_rows<GW_LANES == 16>(c, begin, end);
    return grouped_rows<false>(c, begin, end);
  }
  const int64_t part = ceil_div(c.blocks, c.parts);
  for (int64_t task = begin; task < end; task++) {
    const LowRow row = low_row_of(c, task);
    low_rows(c, row.walk, row.x, row.y, Range{row.part * part, std::min(c.blocks, (row.part + 1) * part)});
  }
}

}  // namespace groupwise::GW_TARGET
