// Walks over a chunk of channels and a piece of their values, by vectors: along the channels of rows, or along the pixels of
// planes. What is done with a vector is written once for both.
#pragma once
#include "kernels/activation-inl.h"
#include "kernels/norm/norm.h"
#include "simd/prefetch.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

using Whole = std::integral_constant<int64_t, kLanes>;

// A whole vector of which only the last lanes are new: one load, where the new lanes alone would take several without masks.
struct LastLanes {
  int64_t count;
};
GW_INLINE Vec load_some(const float* p, LastLanes) { return load(p); }
GW_INLINE void store_some(float* p, Vec v, LastLanes) { store(p, v); }
GW_INLINE Vec keep(Vec v, Whole) { return v; }
GW_INLINE Vec keep(Vec v, LastLanes last) { return float_of(bits_of(v) ^ bits_of(keep(v, kLanes - last.count))); }

// These are inlined always, so that it does not matter how a call would return vectors wider than the instruction set's.
#pragma GCC diagnostic ignored "-Wpsabi"

// Four doubles, as many as one instruction converts from floats.
typedef double Doubles __attribute__((vector_size(4 * 8)));
GW_INLINE Doubles doubles(const float* p) { return __builtin_convertvector(load_four(p), Doubles); }
GW_INLINE Doubles load_doubles(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
GW_INLINE void store_doubles(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }

// The channels of a chunk as vectors. The last begins early rather than end late, so that some channels come twice, unless all
// are fewer than a vector.
struct Chunk {
  int64_t first, count, vectors, last;
  // The sums of a chunk: lane by lane for rows, and for planes one, four times, which are as many as Doubles hold.
  int64_t sums;

  Chunk(const Norm& n, int64_t chunk)
      : first(chunk * n.split.chunk),
        count(std::min(n.split.chunk, n.shape.channels - first)),
        vectors(n.shape.rows ? ceil_div(count, kLanes) : 1),
        last(std::max<int64_t>(0, count - kLanes)),
        sums(n.shape.rows ? vectors * kLanes : 4) {}

  int64_t channel(int64_t vector) const { return first + std::min(vector * kLanes, last); }
};

// Returns how many numbers ahead of a vector its tensors are prefetched, see `prefetch`: in the same channels of a later row.
GW_INLINE int64_t ahead(const Norm& n) { return n.shape.rows ? whole_rows_ahead(n.shape.channels) : kAhead; }

// Sums in double, which begin as zeros.
struct Totals {
  alignas(64) double first[kMostChunk], second[kMostChunk];

  explicit Totals(const Chunk& chunk) {
    for (int64_t i = 0; i < chunk.sums; i += 4) store_doubles(first + i, Doubles{}), store_doubles(second + i, Doubles{});
  }
};

inline Range piece_of(const Norm& n, int64_t piece) {
  return {piece * n.split.piece, std::min((piece + 1) * n.split.piece, n.shape.values())};
}

// Where numbers of the channels of one vector are: in a tensor of one a channel, and in sums of the chunk.
template <class Width>
struct RowPlace {
  int64_t channel, vector;
  Width width;
  GW_INLINE Vec of_channel(const float* p) const { return load_some(p + channel, width); }
  GW_INLINE Vec of_sums(const float* p) const { return load(p + vector * kLanes); }
};
struct PlanePlace {
  int64_t channel;
  GW_INLINE Vec of_channel(const float* p) const { return broadcast(p[channel]); }
  GW_INLINE Vec of_sums(const float* p) const { return broadcast(*p); }
};

// The numbers of the channels of one vector that a forward normalises by.
struct Scaled {
  Vec mean, scale, shift;
};

template <class Place>
GW_INLINE Scaled scaled(const Norm& n, const Place& place) {
  return {place.of_channel(n.mean), place.of_channel(n.scale), place.of_channel(n.shift)};
}

// x - mean comes first: x * scale + (shift - mean * scale) would cancel where the mean is large.
GW_INLINE Vec normalised(Vec centered, const Scaled& s) { return centered * s.scale + s.shift; }

// Calls f(offset, pixels) for the parts of a channel's values [first, last) that are side by side in planes.
template <class F>
GW_INLINE void in_planes(const NormShape& s, int64_t channel, Range values, F&& f) {
  int64_t sample = values.first / s.pixels, pixel = values.first % s.pixels;
  for (int64_t left = values.last - values.first; left > 0; sample++, pixel = 0) {
    const int64_t count = std::min(left, s.pixels - pixel);
    f((sample * s.channels + channel) * s.pixels + pixel, count);
    left -= count;
  }
}

// Calls f(row, N) for tiles of N rows, then f(row, 1).
template <int N, class F>
GW_INLINE void in_tiles(Range rows, F&& f) {
  int64_t row = rows.first;
  for (; row + N <= rows.last; row += N) f(row, std::integral_constant<int, N>{});
  for (; row < rows.last; row++) f(row, std::integral_constant<int, 1>{});
}

// Calls f(vector, offset of its first row, width, numbers, rows) for every vector of the channels of tiles of N rows, and of
// single ones at the end. `numbers` is what make(place) returns for the channels.
template <int N, class Make, class F>
GW_INLINE void in_rows(const Norm& n, const Chunk& chunk, Range values, Make&& make, F&& f) {
  const auto rows = [&](auto width) GW_LAMBDA {
    in_tiles<N>(values, [&](int64_t row, auto tile) GW_LAMBDA {
      for (int64_t vector = 0; vector < chunk.vectors; vector++) {
        const int64_t channel = chunk.channel(vector);
        f(vector, row * n.shape.channels + channel, width, make(RowPlace<decltype(width)>{channel, vector, width}), tile);
      }
    });
  };
  if (chunk.count >= kLanes) {
    rows(Whole{});
  } else {
    rows(chunk.count);
  }
}

// Calls f(offset, width, numbers) for every vector of values [first, last), some of them twice, in the order of memory, which a
// processor foresees. `numbers` is what make(place) returns for the channels of the vector.
template <class Make, class F>
GW_INLINE void each_vector(const Norm& n, const Chunk& chunk, Range values, Make&& make, F&& f) {
  if (n.shape.rows) {
    in_rows<1>(n, chunk, values, make,
               [&](int64_t, int64_t at, auto width, const auto& numbers, auto) GW_LAMBDA { f(at, width, numbers); });
    return;
  }
  const auto numbers = make(PlanePlace{chunk.first});
  in_planes(n.shape, chunk.first, values, [&](int64_t at, int64_t count) GW_LAMBDA {
    if (count < kLanes) return f(at, count, numbers);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) f(at + i, Whole{}, numbers);
    if (i < count) f(at + count - kLanes, Whole{}, numbers);
  });
}

// Fills a and b, which have chunk.sums floats: f(offset, width, numbers, sum_a, sum_b) adds every vector of values
// [first, last) to two sums, once, except the channels that come twice in rows, which have sums of their own.
template <int N, class Make, class F>
GW_INLINE void sum_vectors(const Norm& n, const Chunk& chunk, Range values, float* a, float* b, Make&& make, F&& f) {
  const int64_t channels = n.shape.channels;
  if (n.shape.rows) {
    for (int64_t i = 0; i < chunk.sums; i += kLanes) store(a + i, Vec{}), store(b + i, Vec{});
    in_rows<N>(n, chunk, values, make, [&](int64_t vector, int64_t at, auto width, const auto& numbers, auto tile) GW_LAMBDA {
      Vec sum_a{}, sum_b{};
      unroll<tile()>([&](auto k) GW_LAMBDA { f(at + k * channels, width, numbers, sum_a, sum_b); });
      store(a + vector * kLanes, load(a + vector * kLanes) + sum_a);
      store(b + vector * kLanes, load(b + vector * kLanes) + sum_b);
    });
    return;
  }
  const auto numbers = make(PlanePlace{chunk.first});
  Vec sum_a[4] = {}, sum_b[4] = {};
  in_planes(n.shape, chunk.first, values, [&](int64_t at, int64_t count) GW_LAMBDA {
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes)
      unroll<4>([&](auto k) GW_LAMBDA { f(at + i + k * kLanes, Whole{}, numbers, sum_a[k], sum_b[k]); });
    for (; i + kLanes <= count; i += kLanes) f(at + i, Whole{}, numbers, sum_a[0], sum_b[0]);
    if (i == count) return;
    if (count < kLanes) return f(at, count, numbers, sum_a[1], sum_b[1]);
    f(at + count - kLanes, LastLanes{count - i}, numbers, sum_a[1], sum_b[1]);
  });
  const Four four_a = sum_lanes(sum_a), four_b = sum_lanes(sum_b);
  store_four(a, (four_a[0] + four_a[1]) + (four_a[2] + four_a[3]) - Four{});
  store_four(b, (four_b[0] + four_b[1]) + (four_b[2] + four_b[3]) - Four{});
}

// Calls f(block) for blocks of a piece's values that fit the L1 cache.
template <class F>
GW_INLINE void in_blocks(const Norm& n, const Chunk& chunk, int64_t piece, F&& f) {
  const Range all = piece_of(n, piece);
  const int64_t step = std::max<int64_t>(8, kNormBlock / chunk.count / 8 * 8);
  for (int64_t at = all.first; at < all.last; at += step) f(Range{at, std::min(at + step, all.last)});
}

// Writes sums, in the chunk's order, to the moments of a piece.
GW_INLINE void put_moments(const Norm& n, const Chunk& chunk, int64_t piece, const Totals& totals) {
  Moments* to = n.moments + piece * n.shape.channels;
  for (int64_t vector = 0; vector < chunk.vectors; vector++) {
    const int64_t lanes = std::min<int64_t>(chunk.count, kLanes);
    for (int64_t lane = 0; lane < lanes; lane++)
      to[chunk.channel(vector) + lane] = {totals.first[vector * kLanes + lane], totals.second[vector * kLanes + lane]};
  }
}

}  // namespace groupwise::GW_TARGET
