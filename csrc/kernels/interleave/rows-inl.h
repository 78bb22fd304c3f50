// The rows of two tensors, channel by channel in turn.
#pragma once
#include "kernels/interleave/interleave.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

// Writes a0 b0 a1 b1 ..., `count` floats.
GW_INLINE void alternate(const float* a, const float* b, int64_t count, float* to) {
  int64_t i = 0;
  for (; 2 * (i + kLanes) <= count; i += kLanes) {
    const Vec x = load(a + i), y = load(b + i);
    store(to + 2 * i, interleave_low(x, y));
    store(to + 2 * i + kLanes, interleave_high(x, y));
  }
  for (i *= 2; i < count; i++) to[i] = i % 2 ? b[i / 2] : a[i / 2];
}

void interleave_rows(const Interleave& given, int64_t begin, int64_t end) {
  const Interleave w = given;
  for (int64_t row = begin; row < end; row++) {
    const float *a = w.a + row * w.channels, *b = w.b + row * w.channels;
    if (!w.second) {
      alternate(a, b, 2 * w.channels, w.first + row * 2 * w.channels);
      continue;
    }
    const int64_t middle = w.channels / 2;
    alternate(a, b, w.channels, w.first + row * w.channels);
    // With an odd number of channels the second half begins with one of b.
    if (w.channels % 2) {
      alternate(b + middle, a + middle + 1, w.channels, w.second + row * w.channels);
    } else {
      alternate(a + middle, b + middle, w.channels, w.second + row * w.channels);
    }
  }
}

}  // namespace groupwise::GW_TARGET
