// What CPUID says of a processor of x86-64 beyond what the compiler's builtins know.
#pragma once

#ifdef __x86_64__
#include <cpuid.h>

namespace groupwise {

// The bits of the register EDX of leaf 7 (Intel's Software Developer's Manual, volume 2, CPUID).
enum class ExtendedFeature { amx_bfloat16 = 22, avx512_fp16 = 23, amx_tiles = 24 };

inline bool has(ExtendedFeature feature) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> static_cast<int>(feature) & 1);
}

// Bit 29 of the register ECX of leaf 1: conversions between half-precision numbers and floats.
inline bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

}  // namespace groupwise
#endif
