#include "targets/target-inl.h"

namespace groupwise {
extern const Kernels kBaseline;
const Kernels kBaseline = baseline::table("baseline", 0);
}  // namespace groupwise
