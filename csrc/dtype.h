// The types of numbers that tensors have.
#pragma once

#include <cstdint>
#include <string_view>

namespace groupwise {

// The values are part of the keys by which measurements are kept: `other` and `float32` were once false and true.
enum class Dtype : int64_t { other, float32, bfloat16, float16, float64 };

constexpr std::string_view kDtypeNames[] = {"other", "float32", "bfloat16", "float16", "float64"};

inline Dtype dtype_named(std::string_view name) {
  for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::float16, Dtype::float64})
    if (name == kDtypeNames[static_cast<int>(dtype)]) return dtype;
  return Dtype::other;
}

// Tells whether numbers have 16 bits: most kernels compute float32 copies of them.
inline bool is_low(Dtype dtype) { return dtype == Dtype::bfloat16 || dtype == Dtype::float16; }

}  // namespace groupwise
