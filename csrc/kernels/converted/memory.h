// Memory of float32 copies, and tasks that this thread runs alone.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace groupwise {

// Float32 memory that begins on a cache line.
class Floats {
 public:
  float* of(int64_t count) {
    if (count > count_) {
      memory_.reset();
      count_ = 0;
      void* p = nullptr;
      // One vector beyond the end is for loads whose last lanes are not used.
      if (posix_memalign(&p, 64, count * sizeof(float) + 64) != 0) throw std::bad_alloc();
      memory_.reset(static_cast<float*>(p));
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Freed {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Freed> memory_;
  int64_t count_ = 0;
};

// Runs all tasks here: a `ParallelFor` without threads.
inline void here(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context) {
  if (count > 0) fn(0, count, context);
}

}  // namespace groupwise
