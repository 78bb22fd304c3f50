// PyTorch's thread pool.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace groupwise {

// Returns the threads that may compute: within a parallel region the others are busy.
inline int64_t threads_here() {
  const int64_t threads = at::get_num_threads();
  return threads > 1 && at::in_parallel_region() ? 1 : threads;
}

// Runs tasks on PyTorch's thread pool, by a function of libtorch: `at::parallel_for` is serial in a library built without
// OpenMP.
inline void parallel_for(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context) {
  const int64_t threads = at::get_num_threads();
  TORCH_CHECK(torch_parallel_for(0, count, (count + threads - 1) / threads, fn, context) == 0, "groupwise: a kernel failed");
}

}  // namespace groupwise
