#include "kernels/converted/conversions.h"

#include <algorithm>

#include "run.h"

namespace groupwise {

const Conversions& conversions_of(const Kernels& target, Dtype low) {
  return target.conversions[low == Dtype::float16 ? 1 : 0];
}

ConvertedBlock::ConvertedBlock(std::vector<Dimension> dimensions, const Conversions& conversions) : conversions_(&conversions) {
  std::stable_sort(dimensions.begin(), dimensions.end(),
                   [](const Dimension& a, const Dimension& b) { return a.wide > b.wide; });
  for (const Dimension& d : dimensions) {
    if (d.size == 1) continue;
    if (!dimensions_.empty() && dimensions_.back().low == d.size * d.low && dimensions_.back().wide == d.size * d.wide) {
      dimensions_.back() = {dimensions_.back().size * d.size, d.low, d.wide};
    } else {
      dimensions_.push_back(d);
    }
  }
  if (dimensions_.empty()) dimensions_.push_back({1, 1, 1});
}

// Calls f(offset in the low tensor, offset in the float32 one, numbers) for each row, or pieces of it.
template <class F>
void ConvertedBlock::each_row(bool threaded, ParallelFor parallel_for, F&& f) const {
  constexpr int64_t kPiece = 4096;
  const Dimension& inner = dimensions_.back();
  const int64_t pieces = (inner.size + kPiece - 1) / kPiece;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < dimensions_.size(); i++) rows *= dimensions_[i].size;
  run_tasks(rows * pieces, threaded, parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % pieces * kPiece;
      int64_t row = task / pieces, low = first * inner.low, wide = first * inner.wide;
      for (size_t i = dimensions_.size() - 1; i-- > 0;) {
        const Dimension& d = dimensions_[i];
        low += row % d.size * d.low;
        wide += row % d.size * d.wide;
        row /= d.size;
      }
      f(low, wide, std::min(kPiece, inner.size - first));
    }
  });
}

void ConvertedBlock::widen(const uint16_t* low, float* wide, bool threaded, ParallelFor parallel_for) const {
  const int64_t step = dimensions_.back().low;
  each_row(threaded, parallel_for,
           [&](int64_t from, int64_t to, int64_t count) { conversions_->widen(low + from, step, wide + to, count); });
}

void ConvertedBlock::round(const float* wide, uint16_t* low, bool threaded, ParallelFor parallel_for) const {
  const int64_t step = dimensions_.back().low;
  each_row(threaded, parallel_for,
           [&](int64_t to, int64_t from, int64_t count) { conversions_->round(wide + from, low + to, step, count); });
}

}  // namespace groupwise
