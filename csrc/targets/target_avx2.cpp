#include "targets/target-inl.h"

namespace groupwise {
extern const Kernels kAvx2;
const Kernels kAvx2 = avx2::table("avx2", 1);
}  // namespace groupwise
