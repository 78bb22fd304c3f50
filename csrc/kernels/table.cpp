#include "kernels/table.h"

namespace groupwise {

extern const KernelRow kPlanar, kNarrow, kGroups, kDots, kPixels;

const std::vector<const KernelRow*>& kernel_table() {
  static const std::vector<const KernelRow*> table{&kPlanar, &kNarrow, &kGroups, &kDots, &kPixels};
  return table;
}

}  // namespace groupwise
