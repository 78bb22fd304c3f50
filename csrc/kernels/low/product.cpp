#include "kernels/low/product.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

void pack_low_product(int64_t lanes, int64_t outputs, int64_t inputs, const Bfloat16* weight, Bfloat16* packed) {
  const int64_t block = low_block(lanes);
  for (int64_t first = 0; first < outputs; first += block)
    for (int64_t i = 0; i < inputs; i += 2)
      for (int64_t o = first; o < first + block; o++)
        for (int64_t k = i; k < i + 2; k++) *packed++ = o < outputs ? weight[o * inputs + k] : Bfloat16{0};
}

void multiply_low(const LowProduct& work, const Kernels& target, const NormRun& run) {
  // Ranges of pixels begin at whole tiles, which have so many pixels or a part of it.
  constexpr int64_t kPixels = 12;
  const int64_t blocks = ceil_div(work.outputs, low_block(target.lanes));
  const int64_t numbers = work.pixels * (work.inputs + work.outputs) + work.inputs * work.outputs;
  const Share share{2.0 * static_cast<double>(work.pixels * work.inputs * work.outputs),
                    static_cast<double>(numbers) * sizeof(Bfloat16)};
  const bool threaded = worth_threads(share, run.threads, run.parallel_for);
  // Threads share the pixels, or, where those are few and the outputs many, the weights.
  const bool by_outputs = blocks >= 4 * run.threads && work.pixels < work.outputs;
  const int64_t many = work.pixels >= 16 * kPixels * run.threads ? 4 : 1;
  const int64_t pieces = threaded && !by_outputs ? many * run.threads : 1, parts = threaded && by_outputs ? run.threads : 1;
  const auto from = [&](int64_t piece) {
    const int64_t tiles = (work.pixels * piece / pieces + kPixels / 2) / kPixels;
    return piece == pieces ? work.pixels : std::min(work.pixels, tiles * kPixels);
  };
  run_tasks(pieces * parts, threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t piece = task / parts, part = task % parts;
      target.multiply_low(work, Range{from(piece), from(piece + 1)}, Range{blocks * part / parts, blocks * (part + 1) / parts});
    }
  });
}

}  // namespace groupwise
