// Conversions between float32 and numbers of 16 bits, by each instruction set.
#pragma once

#include <vector>

#include "dtype.h"
#include "kernels/kernels.h"

namespace groupwise {

// Rows of one dtype. `step` is the distance of neighbours in the low row; the float32 row has no gaps.
struct Conversions {
  void (*widen)(const uint16_t* from, int64_t step, float* to, int64_t count);
  void (*round)(const float* from, uint16_t* to, int64_t step, int64_t count);
};

const Conversions& conversions_of(const Kernels& target, Dtype low);

// One dimension of a block that is converted: its length, and its strides in the low tensor and in the float32 one.
struct Dimension {
  int64_t size, low, wide;
};

// A block of a low tensor and its float32 copy, whose innermost dimension has a float32 stride of 1.
class ConvertedBlock {
 public:
  // Takes the dimensions in any order, and joins those that lie side by side in both tensors.
  ConvertedBlock(std::vector<Dimension> dimensions, const Conversions& conversions);

  void widen(const uint16_t* low, float* wide, bool threaded, ParallelFor parallel_for) const;
  void round(const float* wide, uint16_t* low, bool threaded, ParallelFor parallel_for) const;

 private:
  template <class F>
  void each_row(bool threaded, ParallelFor parallel_for, F&& f) const;

  std::vector<Dimension> dimensions_;  // the innermost last
  const Conversions* conversions_;
};

}  // namespace groupwise
