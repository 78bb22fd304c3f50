// Runs the float32 kernels on tensors of 16-bit numbers. A request is computed in chunks of samples, groups and rows: float32 copies
// of what a chunk reads stay in the cache, a kernel computes it there, and each result is rounded once. Kernels do not know.
#pragma once

#include <memory>

#include "kernels/table.h"

namespace groupwise {

// Lays out a kernel for a request of a low dtype. Null if it cannot run: `why` says so, unless it is for want of scratch.
std::unique_ptr<Work> lay_out_converted(const KernelRow& row, const Request& request, const char** why);

// `sum_channels` (run.h) of numbers of a low dtype, whose sums are rounded once.
void sum_low_channels(Dtype dtype, int64_t batch, int64_t channels, int64_t h, int64_t w, const uint16_t* tensor,
                      const Strides& strides, uint16_t* sums, bool threaded, ParallelFor parallel_for);

}  // namespace groupwise
