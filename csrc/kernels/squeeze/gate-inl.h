// The sweeps of squeeze and excitation, and its products.
#pragma once
#include <algorithm>

#include "kernels/activation-inl.h"
#include "kernels/squeeze/squeeze.h"
#include "simd/low.h"
#include "simd/prefetch.h"

namespace groupwise::GW_TARGET {

// Sums share the loads and stores of the running sums of a row between so many pixels.
constexpr int kRowTile = 4;

// Calls f(pixel, N) for tiles of kRowTile pixels [first, last), then for single ones.
template <class F>
GW_INLINE void in_row_tiles(int64_t first, int64_t last, F&& f) {
  for (; first + kRowTile <= last; first += kRowTile) f(first, std::integral_constant<int, kRowTile>{});
  for (; first < last; first++) f(first, std::integral_constant<int, 1>{});
}

// Calls f(offset, width) for the vectors of `count` numbers. The width of a whole one is a constant.
template <class F>
GW_INLINE void in_vectors(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, std::integral_constant<int64_t, kLanes>{});
  if (i < count) f(i, count - i);
}

// Returns the number that is summed: of x, or of its product with `other`.
template <bool Dots, class T, class Width>
GW_INLINE Vec summand(const T* x, const float* other, Width width) {
  if constexpr (Dots) return load_some(x, width) * load_some(other, width);
  return load_some(x, width);
}

// Tiles are summed in registers, and added to the sums of the piece, so that no sum has more than a few hundred addends.
template <bool Dots, class T>
GW_INLINE void sum_rows(const T* x, const float* other, int64_t pixels, int64_t channels, float* sums) {
  std::fill(sums, sums + channels, 0.0f);
  const int64_t next = whole_rows_ahead(channels);
  in_row_tiles(0, pixels, [&](int64_t pixel, auto tile) GW_LAMBDA {
    in_vectors(channels, [&](int64_t c, auto width) GW_LAMBDA {
      const auto of = [&](int64_t k) GW_LAMBDA {
        const int64_t at = (pixel + k) * channels + c;
        prefetch(x + at + next);
        if constexpr (Dots) prefetch(other + at + next);
        return summand<Dots>(x + at, Dots ? other + at : nullptr, width);
      };
      Vec a = of(0), b{};
      unroll<tile() - 1>([&](auto k) GW_LAMBDA {
        const Vec v = of(k + 1);
        if constexpr (k % 2 == 0) {
          b += v;
        } else {
          a += v;
        }
      });
      store_some(sums + c, load_some(sums + c, width) + (a + b), width);
    });
  });
}

// Returns the sum of a plane: of blocks of vectors, then of those sums.
template <bool Dots, class T>
GW_INLINE float sum_plane(const T* x, const float* other, int64_t pixels) {
  constexpr int64_t kBlock = 64 * 4 * kLanes;
  const auto of = [&](int64_t i, auto width) GW_LAMBDA { return summand<Dots>(x + i, Dots ? other + i : nullptr, width); };
  const std::integral_constant<int64_t, kLanes> whole;
  Vec all[4] = {};
  for (int64_t at = 0; at < pixels; at += kBlock) {
    const int64_t last = std::min(pixels, at + kBlock);
    Vec sum[4] = {};
    int64_t i = at;
    for (; i + 4 * kLanes <= last; i += 4 * kLanes) unroll<4>([&](auto k) GW_LAMBDA { sum[k] += of(i + k * kLanes, whole); });
    in_vectors(last - i, [&](int64_t more, auto width) GW_LAMBDA { sum[0] += of(i + more, width); });
    unroll<4>([&](auto k) GW_LAMBDA { all[k] += sum[k]; });
  }
  const Four four = sum_lanes(all);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

template <class T>
GW_INLINE void sums_of(const Squeeze& given, int64_t begin, int64_t end) {
  const Squeeze s = given;
  const T* const x = static_cast<const T*>(s.x);
  const auto sum = [&](auto dots) GW_LAMBDA {
    for (int64_t task = begin; task < end; task++) {
      const int64_t sample = task / s.pieces, first = task % s.pieces * s.piece, start = sample * s.channels * s.pixels;
      const auto other = [&](int64_t at) { return dots() ? s.other + start + at : nullptr; };
      if (s.rows) {
        const int64_t at = first * s.channels;
        sum_rows<dots()>(x + start + at, other(at), std::min(s.piece, s.pixels - first), s.channels,
                         s.sums + task * s.channels);
      } else {
        for (int64_t c = first; c < std::min(s.channels, first + s.piece); c++)
          s.sums[sample * s.channels + c] = sum_plane<dots()>(x + start + c * s.pixels, other(c * s.pixels), s.pixels);
      }
    }
  };
  if (s.other) {
    sum(std::true_type{});
  } else {
    sum(std::false_type{});
  }
}

void squeeze_sums(const Squeeze& s, int64_t begin, int64_t end) {
  if (s.low) {
    sums_of<Bfloat16>(s, begin, end);
  } else {
    sums_of<float>(s, begin, end);
  }
}

// Computes rows [rows.first, rows.last) of samples, before the activation: four rows at once, which share the loads of the input.
// The four after them are prefetched: few samples read a weight so seldom that it comes from memory, in rows too short for the
// processor's own prefetcher.
template <class T>
GW_INLINE void dots(const Gate& g, Range samples, Range rows) {
  constexpr int64_t kStep = 2 * kLanes, kLineOf = 64 / sizeof(T);
  for (int64_t row = rows.first; row < rows.last; row += 4) {
    const int64_t count = std::min<int64_t>(4, rows.last - row);
    const T* w[4];
    // The last row stands in for those that are missing.
    unroll<4>([&](auto k)
                  GW_LAMBDA { w[k] = static_cast<const T*>(g.weight) + std::min<int64_t>(row + k, rows.last - 1) * g.inputs; });
    for (int64_t sample = samples.first; sample < samples.last; sample++) {
      const float* in = g.in + sample * g.inputs;
      Vec even[4] = {}, odd[4] = {};
      int64_t i = 0;
      for (; i + kStep <= g.inputs; i += kStep) {
        const Vec a = load(in + i), b = load(in + i + kLanes);
        unroll<4>([&](auto k) GW_LAMBDA {
          unroll<ceil_div(kStep, kLineOf)>([&](auto line) GW_LAMBDA { prefetch(w[k] + 4 * g.inputs + i + line * kLineOf); });
        });
        unroll<4>([&](auto k) GW_LAMBDA { even[k] += load(w[k] + i) * a; });
        unroll<4>([&](auto k) GW_LAMBDA { odd[k] += load(w[k] + i + kLanes) * b; });
      }
      in_vectors(g.inputs - i, [&](int64_t more, auto width) GW_LAMBDA {
        const Vec a = load_some(in + i + more, width);
        unroll<4>([&](auto k) GW_LAMBDA { even[k] += load_some(w[k] + i + more, width) * a; });
      });
      unroll<4>([&](auto k) GW_LAMBDA { even[k] += odd[k]; });
      const Four sums = sum_lanes(even);
      float* out = g.out + sample * g.outputs + row;
      for (int64_t k = 0; k < count; k++) out[k] = sums[k];
    }
  }
}

void squeeze_gate(const Gate& given, Range samples, Range rows) {
  const Gate g = given;
  if (g.weight && g.low) dots<Bfloat16>(g, samples, rows);
  if (g.weight && !g.low) dots<float>(g, samples, rows);
  with(g.activation, [&](auto activation) {
    for (int64_t sample = samples.first; sample < samples.last; sample++) {
      float* out = g.out + sample * g.outputs + rows.first;
      const float* in = g.weight ? out : g.in + sample * g.outputs + rows.first;
      in_vectors(rows.last - rows.first, [&](int64_t i, auto width) GW_LAMBDA {
        Vec z = load_some(in + i, width);
        if (g.bias) z += load_some(g.bias + rows.first + i, width);
        store_some(out + i, activate<activation()>(z, 0.0f), width);
      });
    }
  });
}

template <class T>
GW_INLINE void scale_of(const Squeeze& given, int64_t begin, int64_t end) {
  const Squeeze s = given;
  const T* const x = static_cast<const T*>(s.x);
  T* const y = static_cast<T*>(s.y);
  const int64_t next = whole_rows_ahead(s.channels);
  for (int64_t task = begin; task < end; task++) {
    const int64_t sample = task / s.pieces, first = task % s.pieces * s.piece, start = sample * s.channels * s.pixels;
    const float *gate = s.gate + sample * s.channels, *added = s.added ? s.added + sample * s.channels : nullptr;
    const int64_t last = std::min(first + s.piece, s.rows ? s.pixels : s.channels);
    if (s.rows) {
      for (int64_t pixel = first; pixel < last; pixel++) {
        const int64_t at = start + pixel * s.channels;
        in_vectors(s.channels, [&](int64_t c, auto width) GW_LAMBDA {
          prefetch(x + at + c + next);
          prefetch(y + at + c + next);
          const Vec product = load_some(x + at + c, width) * load_some(gate + c, width);
          store_some(y + at + c, added ? product + load_some(added + c, width) : product, width);
        });
      }
    } else {
      for (int64_t c = first; c < last; c++) {
        const Vec factor = broadcast(gate[c]), addend = added ? broadcast(added[c]) : Vec{};
        const int64_t at = start + c * s.pixels;
        in_vectors(s.pixels, [&](int64_t i, auto width) GW_LAMBDA {
          const Vec product = load_some(x + at + i, width) * factor;
          store_some(y + at + i, added ? product + addend : product, width);
        });
      }
    }
  }
}

void squeeze_scale(const Squeeze& s, int64_t begin, int64_t end) {
  if (s.low) {
    scale_of<Bfloat16>(s, begin, end);
  } else {
    scale_of<float>(s, begin, end);
  }
}

}  // namespace groupwise::GW_TARGET
