// 3-D convolutions by the kernels of 2-D ones: plane by plane, or as one 2-D convolution where an axis has nothing to sum.
#pragma once

#include "kernels/table.h"

namespace groupwise {

// Returns the 2-D request of one plane, which one thread computes.
Request plane_of(const Request& request);

// Returns why a kernel cannot compute a 3-D request of its directions, or null if it can.
const char* refuses_volume(const Request& request, const KernelRow& kernel);

// Lays out a 3-D request by a kernel that does not refuse it. Returns null if even the smallest block exceeds the scratch.
std::unique_ptr<Work> lay_out_volume(const Request& request, const KernelRow& kernel);

}  // namespace groupwise
