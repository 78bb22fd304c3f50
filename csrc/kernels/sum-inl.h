// The gradient of a bias: the sum of each channel.
#pragma once
#include "kernels/block_sum-inl.h"

namespace groupwise::GW_TARGET {

// Runs tasks [begin, end), each of which sums kChannelBlock channels.
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const Real* tensor, const Strides& s, Real* sums,
                  int64_t begin, int64_t end) {
  // So many channels at once, as far as they are tasks of this thread: pixels that are read in pieces come slower from memory.
  constexpr int64_t kMost = 16 * kChannelBlock;
  const int64_t last = std::min(end * kChannelBlock, channels);
  if (s.h == w * s.w) w *= h, h = 1;
  for (int64_t first = begin * kChannelBlock; first < last; first += kMost) {
    const int64_t count = std::min(kMost, last - first);
    // A block of these columns is a run of each channel.
    const int64_t columns = s.c == 1 && s.w != 1 ? kSummedRun : w;
    double total[kMost] = {};
    for (int64_t n = 0; n < batch; n++)
      for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x += columns)
          add_block(tensor + n * s.n + first * s.c + y * s.h + x * s.w, s, 1, std::min(columns, w - x), count, total);
    for (int64_t c = 0; c < count; c++) sums[first + c] = static_cast<Real>(total[c]);
  }
}

}  // namespace groupwise::GW_TARGET
