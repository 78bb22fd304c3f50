// Packs the weights of narrow groups, side by side in vectors of output channels.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// Packs the weights of the vector whose first lane is output channel `channel` of all, and of which `lanes` lanes exist. It
// reads the weight in the order of its memory where that is possible.
inline void pack_vector(const Correlation& c, int64_t kernel_h, int64_t kernel_w, const Packed& packed, int64_t channel,
                        int64_t lanes, Real* to) {
  const WeightStrides& s = c.weight_strides;
  const int64_t taps = kernel_h * kernel_w, floats = c.in_channels * taps;
  const auto at = [&](int64_t lane) { return begin_of(s, c.out_channels, channel + lane); };
  const Real* from = c.weight + at(0);
  // The step from lane to lane, or 0 if it is not the same for all.
  int64_t step = lanes > 1 ? at(1) - at(0) : 1;
  for (int64_t lane = 1; lane < lanes; lane++)
    if (at(lane) - at(lane - 1) != step) step = 0;
  const bool by_row = s.w == packed.column / kLanes && s.h == packed.row / kLanes;
  if (step != 0 && by_row && s.c == packed.channel / kLanes) {
    for (int64_t t = 0; t < floats; t += kLanes)
      split_pixels(to + t * kLanes, kLanes, from + t, step, std::min<int64_t>(kLanes, floats - t), lanes);
  } else if (step != 0 && by_row && s.w == 1 && taps >= kLanes) {
    // The last vector of taps starts early rather than end late.
    for (int64_t i = 0; i < c.in_channels; i++)
      for (int64_t t = 0; t < taps; t += kLanes) {
        const int64_t first = std::min<int64_t>(t, taps - kLanes);
        split_pixels(to + (i * taps + first) * kLanes, kLanes, from + i * s.c + first, step, kLanes, lanes);
      }
  } else {
    for (int64_t i = 0; i < c.in_channels; i++)
      for (int64_t h = 0; h < kernel_h; h++)
        for (int64_t w = 0; w < kernel_w; w++) {
          Real* tap = to + i * packed.channel + h * packed.row + w * packed.column;
          const int64_t place = i * s.c + h * s.h + w * s.w;
          if (s.o == 1) {
            for (int64_t lane = 0, count; lane < lanes; lane += count) {
              count = std::min(lanes - lane, c.out_channels - (channel + lane) % c.out_channels);
              copy(tap + lane, c.weight + at(lane) + place, count);
            }
            continue;
          }
          for (int64_t lane = 0; lane < lanes; lane++) tap[lane] = c.weight[at(lane) + place];
        }
  }
}

// Orders the packed weights of a vector by factor, if its lanes have factors in an order of their own.
template <class Lanes>
GW_INLINE void arrange_vector(int64_t kernel_h, int64_t kernel_w, const Packed& packed, Real* w) {
  if constexpr (Lanes::kSums == 2) {
    for (int64_t t = 0; t < kernel_h * kernel_w; t++) {
      Real* tap = w + t * packed.column;
      Vec v[Lanes::kChannels];
      unroll<Lanes::kChannels>([&](auto c) GW_LAMBDA { v[c] = load(tap + c * packed.channel); });
      Lanes::arrange(v);
      unroll<Lanes::kChannels>([&](auto c) GW_LAMBDA { store(tap + c * packed.channel, v[c]); });
    }
  }
}

}  // namespace groupwise::GW_TARGET
