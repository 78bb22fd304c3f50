// Numbers of 16 bits: the upper half of a float32. Kernels that take them compute in float32, and round once where they store.
#pragma once

#include <cstdint>
#include <cstring>

namespace groupwise {

struct Bfloat16 {
  uint16_t bits;
};

// Rounds to the nearest, and to the even one of two; a NaN stays a NaN.
inline Bfloat16 rounded(float number) {
  uint32_t word;
  std::memcpy(&word, &number, sizeof word);
  return {static_cast<uint16_t>((number == number ? word + 0x7fff + (word >> 16 & 1) : word | 0x400000) >> 16)};
}

inline float to_float(Bfloat16 number) {
  const uint32_t word = static_cast<uint32_t>(number.bits) << 16;
  float wide;
  std::memcpy(&wide, &word, sizeof wide);
  return wide;
}
inline float to_float(float number) { return number; }

}  // namespace groupwise
