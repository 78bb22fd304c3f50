#include "kernels/low/product.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "run.h"

namespace groupwise {

void pack_low_product(int64_t lanes, int64_t outputs, int64_t inputs, const Bfloat16* weight, Bfloat16* packed) {
  const int64_t block = low_block(lanes);
  for (int64_t first = 0; first < outputs; first += block)
    for (int64_t i = 0; i < inputs; i += 2)
      for (int64_t o = first; o < first + block; o++)
        for (int64_t k = i; k < i + 2; k++) *packed++ = o < outputs ? weight[o * inputs + k] : Bfloat16{0};
}

void multiply_low(const LowProduct& work, const Kernels& target, const NormRun& run) {
  // With fewer products a second thread costs more than it saves.
  constexpr int64_t kWorthAThread = 1 << 20;
  // Ranges of pixels begin at whole tiles, which have so many pixels or a part of it.
  constexpr int64_t kPixels = 12;
  const int64_t blocks = ceil_div(work.outputs, low_block(target.lanes));
  const bool threaded = run.threads > 1 && work.pixels * work.inputs * work.outputs >= kWorthAThread;
  // Threads share the pixels, or, where those are few and the outputs many, the weights.
  const bool by_outputs = blocks >= 4 * run.threads && work.pixels < work.outputs;
  const int64_t many = work.pixels >= 16 * kPixels * run.threads ? 4 : 1;
  const int64_t pieces = threaded && !by_outputs ? many * run.threads : 1, parts = threaded && by_outputs ? run.threads : 1;
  const auto from = [&](int64_t piece) {
    return piece == pieces ? work.pixels : (work.pixels * piece / pieces + kPixels / 2) / kPixels * kPixels;
  };
  run_tasks(pieces * parts, threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t piece = task / parts, part = task % parts;
      target.multiply_low(work, Range{from(piece), from(piece + 1)}, Range{blocks * part / parts, blocks * (part + 1) / parts});
    }
  });
}

}  // namespace groupwise
