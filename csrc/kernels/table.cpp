#include "kernels/table.h"

namespace groupwise {

extern const KernelRow kPlanar, kNarrow, kGroups, kDots, kPixels, kGemm, kBrgemm, kStem, kPairs, kFft;

const std::vector<const KernelRow*>& kernel_table() {
  // Never destroyed: threads may still convolve while the process ends.
  static const auto* table = new std::vector<const KernelRow*>{&kPlanar, &kNarrow, &kGroups, &kDots,  &kPixels,
                                                               &kGemm,   &kBrgemm, &kStem,   &kPairs, &kFft};
  return *table;
}

}  // namespace groupwise
