// 3-D convolutions by the kernels of 2-D ones: plane by plane, or as one 2-D convolution where an axis has nothing to sum.
#pragma once

#include "kernels/table.h"
#include "kernels/volume/plane.h"

namespace groupwise {

// Lays out a kernel for a request of its directions whose numbers it computes as they are, in 1-D to 3-D. Returns null if it cannot
// compute that, where `why` says so, and if even the smallest block exceeds the scratch.
std::unique_ptr<Work> lay_out(const KernelRow& kernel, const Request& request, const char** why);

}  // namespace groupwise
