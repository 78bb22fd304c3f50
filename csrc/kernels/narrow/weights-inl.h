// Packs the weights of narrow groups, side by side in vectors of output channels.
#pragma once
#include "kernels/narrow/lanes-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/turn-inl.h"
#include "kernels/typed.h"

namespace groupwise::GW_TARGET {

// Packs the weights of the vector whose first lane is output channel `channel` of all, and of which `lanes` lanes exist. It
// reads the weight in the order of its memory where that is possible.
inline void pack_vector(const Correlation& c, int64_t kernel_h, int64_t kernel_w, const Packed& packed, int64_t channel,
                        int64_t lanes, Real* to) {
  const WeightStrides& s = c.weight_strides;
  const int64_t taps = kernel_h * kernel_w, floats = c.in_channels * taps;
  Real const* row[kLanes];
  // The step from lane to lane, or 0 if it is not the same for all.
  int64_t step = 1;
  for (int64_t lane = 0, group = channel / c.out_channels, o = channel % c.out_channels; lane < lanes; lane++) {
    row[lane] = c.weight + group * s.group + o * s.o;
    if (lane == 1) step = row[1] - row[0];
    if (lane > 1 && row[lane] - row[lane - 1] != step) step = 0;
    if (++o == c.out_channels) group++, o = 0;
  }
  const bool by_row = s.w == packed.column / kLanes && s.h == packed.row / kLanes;
  if (step != 0 && by_row && s.c == packed.channel / kLanes) {
    // The last taps start early rather than end late.
    for (int64_t next = 0; next < floats; next += kLanes) {
      const int64_t t = std::max<int64_t>(0, std::min(next, floats - kLanes));
      split_pixels(to + t * kLanes, kLanes, row[0] + t, step, std::min<int64_t>(kLanes, floats - t), lanes);
    }
  } else if (by_row && s.w == 1 && taps >= kLeastTurned) {
    for (int64_t i = 0; i < c.in_channels; i++)
      turn_rows(to + i * packed.channel, kLanes, lanes, taps, [&](int64_t lane) GW_LAMBDA { return row[lane] + i * s.c; });
  } else {
    for (int64_t i = 0; i < c.in_channels; i++)
      for (int64_t h = 0; h < kernel_h; h++)
        for (int64_t w = 0; w < kernel_w; w++) {
          Real* tap = to + i * packed.channel + h * packed.row + w * packed.column;
          const int64_t place = i * s.c + h * s.h + w * s.w;
          if (s.o == 1) {
            for (int64_t lane = 0, count; lane < lanes; lane += count) {
              count = std::min(lanes - lane, c.out_channels - (channel + lane) % c.out_channels);
              copy(tap + lane, row[lane] + place, count);
            }
            continue;
          }
          for (int64_t lane = 0; lane < lanes; lane++) tap[lane] = row[lane][place];
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
