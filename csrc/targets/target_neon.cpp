#include "targets/target-inl.h"

namespace groupwise {
extern const Kernels kNeon;
const Kernels kNeon = neon::table("neon", 3);
}  // namespace groupwise
