#include "kernels/low/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace groupwise {

#if defined(__x86_64__) && defined(__linux__)

namespace {

// Linux saves the tiles of a process that asked for it, all its threads included (arch/x86/include/uapi/asm/prctl.h).
constexpr long kRequest = 0x1023, kTileData = 18;

bool found() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool bfloat16 = (d >> 22 & 1) && __builtin_cpu_supports("avx512bf16"), tiles = d >> 24 & 1;
  return bfloat16 && tiles && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool multiplies_tiles() {
  static const bool can = found();
  return can;
}

#else

bool multiplies_tiles() { return false; }

#endif

}  // namespace groupwise
