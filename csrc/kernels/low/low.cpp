#include "kernels/low/low.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/low/amx.h"
#include "kernels/low/band.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

int64_t packed_low_floats(int64_t lanes, const LowGrouped& work) {
  return round_up(work.channels, 2 * lanes) * (1 + work.taps());
}

template <class Number>
void pack_low(const LowGrouped& work, int64_t lanes, const Number* weight, const WeightStrides& s, const float* bias,
              float* packed) {
  const int64_t channels = work.channels, block = 2 * lanes;
  for (int64_t first = 0; first < channels; first += block) {
    const int64_t from = std::max<int64_t>(0, std::min(first, channels - block));
    // The even channels, then the odd ones. No lane divides: a small image takes hardly longer than its weights.
    const auto fill = [&](auto&& value_of) {
      for (int64_t half = 0; half < 2; half++)
        for (int64_t lane = 0, channel = from + half; lane < lanes; lane++, channel += 2)
          *packed++ = channel < channels ? value_of(channel) : 0.0f;
    };
    fill([&](int64_t channel) { return bias ? bias[channel] : 0.0f; });
    for (int64_t kh = 0; kh < work.h.kernel; kh++)
      for (int64_t kw = 0; kw < work.w.kernel; kw++) {
        const Number* tap = weight + kh * s.h + kw * s.w;
        fill([&](int64_t channel) { return to_float(tap[channel * s.group]); });
      }
  }
}
template void pack_low(const LowGrouped&, int64_t, const float*, const WeightStrides&, const float*, float*);
template void pack_low(const LowGrouped&, int64_t, const Bfloat16*, const WeightStrides&, const float*, float*);

int64_t packed_low_pairs(int64_t lanes, const LowGrouped& work) {
  return work.vectors(lanes) * lanes * work.inputs * work.taps();
}

void pack_low_pairs(const LowGrouped& work, int64_t lanes, const Bfloat16* weight, const WeightStrides& s, Range vectors,
                    Bfloat16* packed) {
  constexpr int64_t kMostLanes = 16;
  packed += vectors.first * lanes * work.inputs * work.taps();
  for (int64_t v = vectors.first; v < vectors.last; v++) {
    const LowVector vector = vector_of(work, lanes, v);
    const Bfloat16* outputs[kMostLanes];
    for (int64_t lane = 0; lane < lanes; lane++) outputs[lane] = weight + begin_of(s, work.group, vector.channel + lane);
    for (int64_t kh = 0; kh < work.h.kernel; kh++)
      for (int64_t kw = 0; kw < work.w.kernel; kw++)
        for (int64_t i = 0; i < work.inputs; i += 2, packed += 2 * lanes) {
          const int64_t at = kh * s.h + kw * s.w + i * s.c;
          if (s.c == 1) {
            for (int64_t lane = 0; lane < lanes; lane++) std::memcpy(packed + 2 * lane, outputs[lane] + at, 2 * sizeof *packed);
            continue;
          }
          for (int64_t lane = 0; lane < lanes; lane++) {
            const Bfloat16 both[2] = {outputs[lane][at], outputs[lane][at + s.c]};
            std::memcpy(packed + 2 * lane, both, sizeof both);
          }
        }
  }
}

void correlate_low(const LowGrouped& work, const Kernels& target, const NormRun& run) {
  const int64_t outputs = work.batch * work.channels * work.h.out * work.w.out;
  const int64_t inputs = work.batch * work.channels / work.group * work.inputs * work.h.in * work.w.in;
  const Share share{2.0 * static_cast<double>(outputs * work.inputs * work.taps()),
                    static_cast<double>(inputs + outputs) * sizeof(Bfloat16)};
  const int64_t threads = worth_threads(share, run.threads, run.parallel_for) ? run.threads : 1;
  correlate_low_on(shared_out(work, target, threads), target, {threads, run.parallel_for});
}

LowGrouped shared_out(LowGrouped work, const Kernels& target, int64_t threads) {
  work.blocks = work.group > 1 ? work.vectors(target.lanes) : ceil_div(work.channels, 2 * target.lanes);
  if (target.lanes == kBandColumns && fills_tiles(work) && multiplies_tiles()) work.rows = band_rows(work, threads);
  // Few rows share out evenly where their channels are halved.
  if (threads > 1 && work.batch * work.h.out < 8 * threads && work.blocks > 1) work.parts = 2;
  return work;
}

void correlate_low_on(const LowGrouped& work, const Kernels& target, const NormRun& run) {
  run_tasks(work.tasks(), run.threads > 1, run.parallel_for,
            [&](int64_t begin, int64_t end) { target.correlate_low(work, begin, end); });
}

}  // namespace groupwise
