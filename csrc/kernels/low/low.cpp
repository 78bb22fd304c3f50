#include "kernels/low/low.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/low/amx.h"
#include "kernels/low/band.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

int64_t packed_low_floats(int64_t lanes, int64_t channels, int64_t taps) {
  return ceil_div(channels, 2 * lanes) * 2 * lanes * (1 + taps);
}

void pack_low(int64_t lanes, int64_t channels, int64_t taps, const float* weight, const float* bias, float* packed) {
  const int64_t block = 2 * lanes;
  for (int64_t first = 0; first < channels; first += block) {
    const int64_t from = std::max<int64_t>(0, std::min(first, channels - block));
    for (int64_t tap = -1; tap < taps; tap++)
      for (int64_t i = 0; i < block; i++) {
        const int64_t channel = from + i % lanes * 2 + i / lanes;
        const bool there = channel < channels && (tap >= 0 || bias);
        *packed++ = !there ? 0 : tap < 0 ? bias[channel] : weight[channel * taps + tap];
      }
  }
}

void pack_low_pairs(int64_t lanes, int64_t channels, int64_t group, int64_t taps, const Bfloat16* weight, Bfloat16* packed) {
  for (int64_t first = 0; first < channels; first += lanes) {
    const int64_t from = std::min(first, channels - lanes);
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = 0; i < group; i += 2)
        for (int64_t o = from; o < from + lanes; o++)
          for (int64_t k = i; k < i + 2; k++) *packed++ = weight[(o * group + k) * taps + tap];
  }
}

void correlate_low(LowGrouped work, const Kernels& target, const NormRun& run) {
  const int64_t outputs = work.batch * work.channels * work.h.out * work.w.out;
  const int64_t inputs = work.batch * work.channels * work.h.in * work.w.in;
  const Share share{2.0 * static_cast<double>(outputs * work.group * work.h.kernel * work.w.kernel),
                    static_cast<double>(inputs + outputs) * sizeof(Bfloat16)};
  const bool threaded = worth_threads(share, run.threads, run.parallel_for);
  work.blocks = ceil_div(work.channels, 2 * target.lanes);
  if (fills_tiles(work) && target.lanes == kBandColumns && multiplies_tiles())
    work.rows = band_rows(work, threaded ? run.threads : 1);
  // Few rows share out evenly where their channels are halved.
  if (threaded && work.batch * work.h.out < 8 * run.threads && work.blocks > 1) work.parts = 2;
  run_tasks(work.tasks(), threaded, run.parallel_for,
            [&](int64_t begin, int64_t end) { target.correlate_low(work, begin, end); });
}

}  // namespace groupwise
