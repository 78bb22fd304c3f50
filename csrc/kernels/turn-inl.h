// Turns rows of floats, which begin anywhere, to vectors across the rows.
#pragma once
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// A turn takes as long for rows of few floats as for full vectors: fewer than these are copied faster one by one.
constexpr int64_t kLeastTurned = kLanes / 4;

// Writes float i of each of `rows` rows (at most kLanes) of n floats, row j of which begins at row_at(j), to to + i * step.
// Lanes beyond the rows are zero.
template <class Row>
GW_INLINE void turn_rows(Real* to, int64_t step, int64_t rows, int64_t n, Row&& row_at) {
  for (int64_t next = 0; next < n; next += kLanes) {
    // The last vector starts early rather than end late.
    const int64_t first = std::max<int64_t>(0, std::min(next, n - kLanes)), some = std::min<int64_t>(kLanes, n - first);
    Vec block[kLanes];
    unroll<kLanes>([&](auto j) GW_LAMBDA { block[j] = j < rows ? load_some(row_at(j) + first, some) : Vec{}; });
    transpose(block);
    unroll<kLanes>([&](auto j) GW_LAMBDA {
      if (j < some) store(to + (first + j) * step, block[j]);
    });
  }
}

}  // namespace groupwise::GW_TARGET
