// All kernels. Each target_*.cpp includes this file and compiles them for its instruction set.
#include "kernels/narrow/correlate-inl.h"
#include "kernels/dots/correlate-inl.h"
#include "kernels/groups/correlate-inl.h"
#include "kernels/planar/grad_weight-inl.h"
#include "kernels/pixels/grad_weight-inl.h"
#include "kernels/narrow/grad_weight-inl.h"
#include "kernels/kernels.h"
#include "kernels/planar/correlate-inl.h"
#include "kernels/sum-inl.h"

namespace groupwise::GW_TARGET {

constexpr Kernels table(const char* isa) {
  return {isa,
          kLanes,
          correlate_planar,
          correlate_channels,
          correlate_groups,
          correlate_dots,
          grad_weight_planar,
          grad_weight_channels,
          grad_weight_narrow,
          sum_channels};
}

}  // namespace groupwise::GW_TARGET
