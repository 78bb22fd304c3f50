#include <algorithm>

#include "kernels/converted/conversions.h"
#include "kernels/converted/converted.h"
#include "kernels/converted/memory.h"
#include "targets/isa.h"

namespace groupwise {

void sum_low_channels(Dtype dtype, int64_t batch, int64_t channels, int64_t h, int64_t w, const uint16_t* tensor,
                      const Strides& s, uint16_t* sums, bool threaded, ParallelFor parallel_for) {
  const Kernels& target = kernels();
  const Conversions& conversions = conversions_of(target, dtype);
  // Pieces of a row of so many channels and columns.
  constexpr int64_t kMost = 4 * kChannelBlock, kColumns = 4096;
  run_tasks(ceil_div(channels, kMost), threaded, parallel_for, [&](int64_t begin, int64_t end) {
    thread_local Floats memory;
    float* const piece = memory.of(kMost * std::min(w, kColumns));
    for (int64_t first = begin * kMost; first < std::min(channels, end * kMost); first += kMost) {
      const int64_t count = std::min(kMost, channels - first);
      double total[kMost] = {};
      float some[kMost];
      for (int64_t x = 0; x < w; x += kColumns) {
        const int64_t columns = std::min(kColumns, w - x);
        const Strides wide = dense_strides(1, count, 1, columns, s.c == 1);
        const ConvertedBlock block({{count, s.c, wide.c}, {columns, s.w, wide.w}}, conversions);
        for (int64_t n = 0; n < batch; n++)
          for (int64_t y = 0; y < h; y++) {
            block.widen(tensor + n * s.n + first * s.c + y * s.h + x * s.w, piece, false, here);
            target.float32.sum_channels(1, count, 1, columns, piece, wide, some, 0, ceil_div(count, kChannelBlock));
            for (int64_t c = 0; c < count; c++) total[c] += some[c];
          }
      }
      for (int64_t c = 0; c < count; c++) some[c] = static_cast<float>(total[c]);
      conversions.round(some, sums + first, 1, count);
    }
  });
}

}  // namespace groupwise
