// Squeeze and excitation: y = x * gate, where the gate is one number a sample and channel, which two small products make of the
// means over the pixels: gate = second(first(mean)). A product is act(w * v + b).
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"

namespace groupwise {

// out[sample][row] = act(bias[row] + sum over k of weight[row][k] * in[sample][k]). Without a weight, `out` is act(in + bias).
struct Gate {
  int64_t samples, inputs, outputs;
  const void* weight;  // or null
  const float* bias;   // or null
  bool low;            // the weight is of bfloat16, and not of floats
  Activation activation;
  const float* in = nullptr;
  float* out = nullptr;
};

// Work is split by pieces of a sample: ranges of pixels, which hold all channels (channels_last), or ranges of channels
// (contiguous). The split depends on the shape alone, so that results have the same bits for any number of threads.
struct Squeeze {
  int64_t samples, channels, pixels;
  bool rows;
  bool low = false;  // x and y are of bfloat16, and not of floats
  const void* x = nullptr;
  void* y = nullptr;  // may be x
  int64_t piece = 0, pieces = 0;
  float* sums = nullptr;        // rows: [sample][piece][channel], else [sample][channel]
  const float* gate = nullptr;  // [sample][channel]
  // A backward sums x times this, and adds a number a sample and channel to y; null in a forward.
  const float *other = nullptr, *added = nullptr;
};

// How sweeps are threaded: see NormRun. `first` has no outputs where there is one product only. Fills `mean`, if it is there, with
// the means, [sample][channel].
void squeeze_excite(Squeeze squeeze, Gate first, Gate second, const NormRun& run, float* mean = nullptr);

// Fills `dots`, [sample][channel], with the sums of x * other over the pixels.
void squeeze_dots(Squeeze squeeze, float* dots, const NormRun& run);

// Fills y with x * gate + added.
void squeeze_pass(Squeeze squeeze, const NormRun& run);

// Fills y, one number a sample and channel, with the means.
void mean_pixels(Squeeze squeeze, const NormRun& run);

}  // namespace groupwise
