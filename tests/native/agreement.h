// Runs plans on random tensors between guard bands, and compares what they write with plain loops in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GW_POISONED
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define GW_POISONED
#endif
#ifdef GW_POISONED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size)
#define ASAN_UNPOISON_MEMORY_REGION(at, size)
#endif

#include "plan/plan.h"

namespace groupwise {

using Random = std::mt19937;

// Floats between two guard bands of a value that no computation gives. They start as NaN. AddressSanitizer also forbids to read
// the bands.
class Guarded {
 public:
  explicit Guarded(int64_t size);
  Guarded(const Guarded&) = delete;
  ~Guarded() { ASAN_UNPOISON_MEMORY_REGION(all_.data(), all_.size() * sizeof(float)); }
  float* data() { return all_.data() + kGuard; }
  int64_t size() const { return size_; }
  void randomize(Random& random);
  bool intact() const;

 private:
  // The number is odd, so that the tensor is aligned to no more than a float.
  static constexpr int64_t kGuard = 67;
  static constexpr float kMark = 1.2345678e30f;
  int64_t size_;
  std::vector<float> all_;
};

// Returns threads of the test's own: so many, up to 4, each of which runs a range of the tasks.
ParallelFor on_threads(int64_t threads);

// The product that PyTorch lends the core elsewhere.
void multiply(int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t b_row, int64_t c_row, bool add, const float* a,
              const float* b, float* c);

// What a run has beside the tensors of its convolution, where the kernel takes it.
struct Extras {
  bool bias, epilogue, packed, sums;
};

// Runs a plan of one of our kernels. Returns true if the result is within rounding of plain loops, and nothing else was written;
// else prints what was wrong of which plan.
bool agrees(const Plan& plan, const Extras& extras, Random& random);

// Compares the sum of each channel of y with plain loops.
bool channels_close(const Request& r, const float* y, const float* sums);

}  // namespace groupwise
