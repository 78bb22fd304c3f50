// Forward: the moments of a piece, and the sweep that normalises, adds and activates.
#pragma once
#include "kernels/norm/walk-inl.h"

namespace groupwise::GW_TARGET {

// Sums of a block are about the mean of the block before, which is near enough: a step between them that makes squares cancel is part
// of the variance. The first block is read once more, for a mean. Blocks are merged in double, about the mean of the first.
void norm_moments(const Norm& norm, int64_t index, int64_t piece) {
  const Norm n = norm;
  const Chunk chunk(n, index);
  alignas(64) float mean[kMostChunk], a[kMostChunk], b[kMostChunk];
  alignas(64) double base[kMostChunk];
  Totals totals(chunk);
  double *const first = totals.first, *const second = totals.second;
  bool begun = false;
  const int64_t next = ahead(n);
  in_blocks(n, chunk, piece, [&](Range block) {
    const auto count = static_cast<double>(block.last - block.first);
    if (!begun) {
      sum_vectors<4>(
          n, chunk, block, a, b, [](const auto&) GW_LAMBDA { return 0; },
          [&](int64_t at, auto width, int, Vec& sum, Vec&) GW_LAMBDA { sum += keep(load_some(n.x + at, width), width); });
      const auto share = static_cast<float>(1 / count);
      for (int64_t i = 0; i < chunk.sums; i += 4) store_four(mean + i, load_four(a + i) * share);
    }
    sum_vectors<4>(
        n, chunk, block, a, b, [&](const auto& place) GW_LAMBDA { return place.of_sums(mean); },
        [&](int64_t at, auto width, Vec middle, Vec& sum, Vec& squares) GW_LAMBDA {
          prefetch(n.x + at + next);
          const Vec from = keep(load_some(n.x + at, width) - middle, width);
          sum += from;
          squares += from * from;
        });
    for (int64_t i = 0; i < chunk.sums; i += 4) {
      const Doubles rest = doubles(a + i) / count, exact = doubles(mean + i) + rest;
      if (!begun) store_doubles(base + i, exact);
      const Doubles from = exact - load_doubles(base + i);
      store_doubles(first + i, load_doubles(first + i) + count * from);
      store_doubles(second + i, load_doubles(second + i) + (doubles(b + i) - count * rest * rest) + count * from * from);
      store_four(mean + i, __builtin_convertvector(exact, Four));
    }
    begun = true;
  });
  const Range all = piece_of(n, piece);
  const auto count = static_cast<double>(all.last - all.first);
  for (int64_t i = 0; i < chunk.sums; i++) {
    const double from = first[i] / count;
    second[i] -= count * from * from;
    first[i] = base[i] + from;
  }
  put_moments(n, chunk, piece, totals);
}

void norm_apply(const Norm& norm, int64_t index, int64_t piece) {
  with(norm.activation, [&](auto activation) {
    // The compiler must take it that a store changes `norm`, and keeps a copy in registers.
    const Norm n = norm;
    const Chunk chunk(n, index);
    const int64_t next = ahead(n);
    const auto apply = [&](auto adds) GW_LAMBDA {
      each_vector(
          n, chunk, piece_of(n, piece), [&](const auto& place) GW_LAMBDA { return scaled(n, place); },
          [&](int64_t at, auto width, const Scaled& s) GW_LAMBDA {
            prefetch(n.x + at + next);
            prefetch(n.y + at + next);
            if constexpr (adds()) prefetch(n.residual + at + next);
            Vec z = normalised(load_some(n.x + at, width) - s.mean, s);
            if constexpr (adds()) z += load_some(n.residual + at, width);
            store_some(n.y + at, activate<activation()>(z, n.slope), width);
          });
    };
    if (n.residual) {
      apply(std::true_type{});
    } else {
      apply(std::false_type{});
    }
  });
}

}  // namespace groupwise::GW_TARGET
