// Prefetches of sweeps over tensors that no cache holds.
#pragma once
#include <algorithm>

#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Sweeps over memory ask for a line before they read or write it: a processor's own prefetcher foresees nothing beyond a page, and
// little where rows take turns; and a store to a line that is in no cache waits, with all stores behind it. The line goes to L2, since
// a core waits for few lines of its L1 at a time (the sweeps of a batch normalisation of 8 samples of 256 channels 56x56 in
// channels_last, one thread of Zen 4, took twice the time with prefetches into L1).
GW_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

constexpr int kLine = 64 / sizeof(Real);
// Prefetches the lines that N numbers begin.
template <int N>
GW_INLINE void prefetch_numbers(const Real* p) {
  unroll<(N + kLine - 1) / kLine>([&](auto i) GW_LAMBDA { prefetch(p + i * kLine); });
}

// Sweeps prefetch so many numbers ahead: enough to compute until a line comes from memory, and few enough to stay in L2.
constexpr int64_t kAhead = 8192 / sizeof(Real);
// Returns how many rows of `length` numbers are about as many, at least one.
GW_INLINE int64_t rows_ahead(int64_t length) { return length < kAhead ? kAhead / std::max<int64_t>(1, length) : 1; }
// Returns how far that is.
GW_INLINE int64_t whole_rows_ahead(int64_t length) { return rows_ahead(length) * length; }

// Every so many vectors, one begins a cache line.
constexpr int kVectorsALine = kLanes < kLine ? kLine / kLanes : 1;

}  // namespace groupwise::GW_TARGET
