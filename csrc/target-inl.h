// All kernels. Each target_*.cpp includes this file and compiles them for its instruction set.
#include "channels-inl.h"
#include "channels_dot-inl.h"
#include "channels_group-inl.h"
#include "grad_weight-inl.h"
#include "grad_weight_channels-inl.h"
#include "grad_weight_narrow-inl.h"
#include "kernels.h"
#include "planar-inl.h"
#include "sum-inl.h"

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
