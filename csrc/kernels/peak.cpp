// Multiplies and adds as fast as the instruction set can: what its peak is measured by.
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

void multiply_adds(int64_t rounds);

void multiply_adds(int64_t rounds) {
  // Two units with a latency of 4 or 5 cycles are kept busy by 10 sums.
  constexpr int kSums = 12;
  Vec sum[kSums], a = broadcast(0.5f), b = broadcast(0.25f);
  unroll<kSums>([&](auto i) GW_LAMBDA { sum[i] = broadcast(static_cast<float>(i)); });
  pin(b);
  // A factor that may have changed is multiplied anew: where add_product is no instruction of its own, compilers multiply once.
  for (; rounds > 0; rounds--) unroll<kSums>([&](auto i) GW_LAMBDA { pin(a), add_product(sum[i], a, b), pin(sum[i]); });
}

}  // namespace groupwise::GW_TARGET
