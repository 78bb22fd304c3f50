#include "targets/target-inl.h"

namespace groupwise {
extern const Kernels kAvx512;
const Kernels kAvx512 = avx512::table("avx512", 2);
}  // namespace groupwise
