#include "problem.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace groupwise {
namespace {

constexpr int64_t kKiB = 1024;

// Returns the bytes of the first processor's L2 cache as Linux tells them in files, or 0.
int64_t l2_bytes_in_files() {
  const auto read = [](int index, const char* name) {
    char path[80];
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    long number = 0;
    if (std::FILE* file = std::fopen(path, "r")) {
      if (std::fscanf(file, "%ld", &number) != 1) number = 0;
      std::fclose(file);
    }
    return number;
  };
  for (int index = 0; index < 8; index++)
    if (read(index, "level") == 2) return read(index, "size") * kKiB;  // a text such as 1024K
  return 0;
}

// Returns the bytes of a processor's L2 cache. Not every system tells; 1 MiB is then the most common size.
int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (told > 0) return told;
#endif
  // glibc has no answer on aarch64.
  const int64_t found = l2_bytes_in_files();
  if (found > 0) return found;
  return 1024 * kKiB;
}

}  // namespace

const int64_t kScratchFloats = std::clamp<int64_t>(l2_bytes() / 2, 256 * kKiB, 1024 * kKiB) / 4;

}  // namespace groupwise
