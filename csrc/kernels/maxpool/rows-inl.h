// Rows of the output, window by window.
#pragma once
#include <algorithm>
#include <limits>

#include "kernels/maxpool/maxpool.h"
#include "simd/low.h"

namespace groupwise::GW_TARGET {

// The part of a window that is inside the image: its first tap, and the taps and numbers between them along each axis.
template <class T>
struct Window {
  const T* from;
  int64_t rows, columns, row, column;
};

// Writes N vectors of channels of one output, `width` lanes of each. Side is the window's if that is square and a constant, else 0.
template <int N, int Side, class T, class Width>
GW_INLINE void largest(const Window<T>& w, int64_t channel, Width width, T* to) {
  // A comparison with NaN is false, so that NaN is counted by itself: one comparison a tap would wait for the one before it.
  Vec most[N];
  decltype(most[0] != most[0]) bad[N] = {};
  unroll<N>([&](auto k) GW_LAMBDA { most[k] = broadcast(-std::numeric_limits<float>::infinity()); });
  each<Side>(w.rows, [&](int64_t i) GW_LAMBDA {
    each<Side>(w.columns, [&](int64_t j) GW_LAMBDA {
      const T* from = w.from + i * w.row + j * w.column + channel;
      unroll<N>([&](auto k) GW_LAMBDA {
        const Vec v = load_some(from + k * kLanes, width);
        most[k] = v > most[k] ? v : most[k];
        bad[k] |= v != v;
      });
    });
  });
  unroll<N>([&](auto k) GW_LAMBDA {
    store_some(to + channel + k * kLanes, bad[k] ? broadcast(std::numeric_limits<float>::quiet_NaN()) : most[k], width);
  });
}

// Writes all channels of one output. The last vector begins where it ends with them, and overlaps the one before it.
template <int Side, class T>
GW_INLINE void all_channels(const Window<T>& w, int64_t channels, T* to) {
  constexpr std::integral_constant<int64_t, kLanes> kWhole{};
  if (channels < kLanes) return largest<1, Side>(w, 0, channels, to);
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) largest<4, Side>(w, c, kWhole, to);
  for (; c + kLanes <= channels; c += kLanes) largest<1, Side>(w, c, kWhole, to);
  if (c < channels) largest<1, Side>(w, channels - kLanes, kWhole, to);
}

template <class T>
inline void max_pool_of(const MaxPool& given, int64_t begin, int64_t end) {
  const MaxPool p = given;
  const int64_t row = p.width * p.channels;
  // Which taps of a window that begins at `at` are inside.
  const auto inside = [](int64_t at, int64_t kernel, int64_t size)
                          GW_LAMBDA { return Range{std::max<int64_t>(at, 0), std::min(at + kernel, size)}; };
  for (int64_t task = begin; task < end; task++) {
    const int64_t sample = task / p.out_height, y = task % p.out_height;
    const Range rows = inside(y * p.stride[0] - p.padding[0], p.kernel[0], p.height);
    const T* image = static_cast<const T*>(p.x) + sample * p.height * row;
    for (int64_t x = 0; x < p.out_width; x++) {
      const Range columns = inside(x * p.stride[1] - p.padding[1], p.kernel[1], p.width);
      const Window<T> w{image + rows.first * row + columns.first * p.channels, rows.last - rows.first,
                        columns.last - columns.first, row, p.channels};
      T* to = static_cast<T*>(p.y) + (task * p.out_width + x) * p.channels;
      if (w.rows == 3 && w.columns == 3) {
        all_channels<3>(w, p.channels, to);
      } else {
        all_channels<0>(w, p.channels, to);
      }
    }
  }
}

void max_pool_rows(const MaxPool& work, int64_t begin, int64_t end) {
  if (work.low) {
    max_pool_of<Bfloat16>(work, begin, end);
  } else {
    max_pool_of<float>(work, begin, end);
  }
}

}  // namespace groupwise::GW_TARGET
