#include "kernels/low/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "targets/cpuid.h"
#endif

namespace groupwise {

#if defined(__x86_64__) && defined(__linux__)

namespace {

// Linux saves the tiles of a process that asked for it, all its threads included (arch/x86/include/uapi/asm/prctl.h).
constexpr long kRequest = 0x1023, kTileData = 18;

bool found() {
  const bool bfloat16 = has(ExtendedFeature::amx_bfloat16) && __builtin_cpu_supports("avx512bf16");
  return bfloat16 && has(ExtendedFeature::amx_tiles) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
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
