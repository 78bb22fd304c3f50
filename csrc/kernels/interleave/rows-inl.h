// The rows of two tensors, channel by channel in turn.
#pragma once
#include "kernels/interleave/interleave.h"
#include "simd/low.h"

namespace groupwise::GW_TARGET {

// Writes the numbers of a vector of a and one of b in turn.
GW_INLINE void alternate_vectors(const float* a, const float* b, float* to) {
  const Vec x = load(a), y = load(b);
  store(to, interleave_low(x, y));
  store(to + kLanes, interleave_high(x, y));
}
// A word holds a number of a in its lower half, and one of b in the upper.
GW_INLINE void alternate_vectors(const Bfloat16* a, const Bfloat16* b, Bfloat16* to) {
  const Words words = words_of(load(a)) >> 16 | words_of(load(b));
  std::memcpy(to, &words, sizeof words);
}

// Writes a0 b0 a1 b1 ..., `count` numbers.
template <class T>
GW_INLINE void alternate(const T* a, const T* b, int64_t count, T* to) {
  int64_t i = 0;
  for (; 2 * (i + kLanes) <= count; i += kLanes) alternate_vectors(a + i, b + i, to + 2 * i);
  for (i *= 2; i < count; i++) to[i] = i % 2 ? b[i / 2] : a[i / 2];
}

template <class T>
GW_INLINE void interleave_of(const Interleave& w, int64_t begin, int64_t end) {
  const int64_t channels = w.channels, middle = channels / 2;
  T *const first = static_cast<T*>(w.first), *const second = static_cast<T*>(w.second);
  for (int64_t row = begin; row < end; row++) {
    const T *a = static_cast<const T*>(w.a) + row * channels, *b = static_cast<const T*>(w.b) + row * channels;
    if (!second) {
      alternate(a, b, 2 * channels, first + row * 2 * channels);
      continue;
    }
    alternate(a, b, channels, first + row * channels);
    // With an odd number of channels the second half begins with one of b.
    if (channels % 2) {
      alternate(b + middle, a + middle + 1, channels, second + row * channels);
    } else {
      alternate(a + middle, b + middle, channels, second + row * channels);
    }
  }
}

void interleave_rows(const Interleave& work, int64_t begin, int64_t end) {
  if (work.low) {
    interleave_of<Bfloat16>(work, begin, end);
  } else {
    interleave_of<float>(work, begin, end);
  }
}

}  // namespace groupwise::GW_TARGET
