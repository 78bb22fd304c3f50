#include "problem.h"

#include <algorithm>
#include <unistd.h>

namespace groupwise {
namespace {

constexpr int64_t kKiB = 1024;

// Returns the bytes of a processor's L2 cache. Not every system tells; 1 MiB is then the most common size.
int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (told > 0) return told;
#endif
  return 1024 * kKiB;
}

}  // namespace

const int64_t kScratchFloats = std::clamp<int64_t>(l2_bytes() / 2, 256 * kKiB, 1024 * kKiB) / 4;

}  // namespace groupwise
