#define GW_TARGET baseline
#define GW_LANES 4
#include "targets/target-inl.h"

namespace groupwise {
extern const Kernels kBaseline;
const Kernels kBaseline = baseline::table("baseline");
}  // namespace groupwise
