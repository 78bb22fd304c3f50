// Rows of numbers of 16 bits to rows of float32 and back.
#pragma once
#include "kernels/converted/conversions.h"
#include "simd/float16.h"

namespace groupwise::GW_TARGET {

extern const Conversions kConversions[2];

template <class Low>
void widen_row(const uint16_t* from, int64_t step, float* to, int64_t count) {
  Low lanes[kLanes] = {};
  const auto gather = [&](int64_t at, int64_t some) {
    for (int64_t i = 0; i < some; i++) lanes[i].bits = from[(at + i) * step];
    return load(lanes);
  };
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(reinterpret_cast<const Low*>(from + i)));
  } else {
    for (; i + kLanes <= count; i += kLanes) store(to + i, gather(i, kLanes));
  }
  if (i < count) store_some(to + i, gather(i, count - i), count - i);
}

template <class Low>
void round_row(const float* from, uint16_t* to, int64_t step, int64_t count) {
  Low lanes[kLanes];
  const auto scatter = [&](int64_t at, int64_t some) {
    for (int64_t i = 0; i < some; i++) to[(at + i) * step] = lanes[i].bits;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if (step == 1) {
      store(reinterpret_cast<Low*>(to + i), load(from + i));
    } else {
      store(lanes, load(from + i));
      scatter(i, kLanes);
    }
  }
  if (i < count) {
    store(lanes, load_some(from + i, count - i));
    scatter(i, count - i);
  }
}

const Conversions kConversions[2] = {{widen_row<Bfloat16>, round_row<Bfloat16>}, {widen_row<Float16>, round_row<Float16>}};

}  // namespace groupwise::GW_TARGET
