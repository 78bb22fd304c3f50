// Adds up the lanes of a tile of a weight's gradient.
#pragma once
#include "kernels/layout.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Adds the sum of the lanes of sum[i][j] to sums[i * row + j], four at a time.
template <int I, int J>
GW_INLINE void add_sums(const Vec (&sum)[I][J], Real* sums, int64_t row) {
  unroll<ceil_div(I * J, 4)>([&](auto four) GW_LAMBDA {
    Vec v[4];
    unroll<4>([&](auto k) GW_LAMBDA {
      constexpr int at = 4 * four + k;
      if constexpr (at < I * J) {
        v[k] = sum[at / J][at % J];
      } else {
        v[k] = Vec{};
      }
    });
    const Four total = sum_lanes(v);
    unroll<4>([&](auto k) GW_LAMBDA {
      constexpr int at = 4 * four + k;
      if constexpr (at < I * J) sums[at / J * row + at % J] += total[int{k}];
    });
  });
}

}  // namespace groupwise::GW_TARGET
