// A convolution as numbers, and the work that kernels do on it. This core knows no torch and starts no threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "epilogue.h"

namespace groupwise {

// Output position o of one spatial dimension reads input positions o * stride + k * dilation - pad, k in [0, kernel).
// `out` implies the padding after the input.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;
  bool operator==(const Axis&) const = default;
};

// Tells whether outputs have one tap, which never meets padding.
inline bool one_tap(const Axis& a) { return a.kernel == 1 && a.pad == 0 && (a.out - 1) * a.stride < a.in; }

// Tells whether output i reads input i alone, for all inputs.
inline bool one_to_one(const Axis& a) { return one_tap(a) && a.stride == 1 && a.in == a.out; }

// Channels are counted in one group. A 1-D convolution has a height of 1.
struct Problem {
  int64_t batch, groups, in_channels, out_channels;
  Axis h, w;
  bool operator==(const Problem&) const = default;
};

inline bool depthwise(const Problem& p) { return p.in_channels == 1 && p.out_channels == 1; }

enum class Direction { forward, grad_input, grad_weight };

// Strides of a tensor (n, c, h, w), in elements.
struct Strides {
  int64_t n, c, h, w;
  bool operator==(const Strides&) const = default;
};

// Replaces the strides of dimensions of one element, which say nothing. Afterwards a stride of 1 between channels, or columns,
// means that they are neighbours in memory.
inline Strides meaningful(Strides s, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  if (channels == 1) s.c = 1;
  if (width == 1) s.w = s.c == 1 && channels > 1 ? channels : 1;
  if (height == 1) s.h = 0;
  if (batch == 1) s.n = 0;
  return s;
}

// Returns the strides of a contiguous or channels-last tensor.
inline Strides dense_strides(int64_t batch, int64_t channels, int64_t h, int64_t w, bool channels_last) {
  const Strides last{channels * h * w, 1, w * channels, channels}, first{channels * h * w, h * w, w, 1};
  return meaningful(channels_last && channels > 1 ? last : first, batch, channels, h, w);
}

// Strides of a weight: from group to group, and within a group by output channel, input channel, row and column.
struct WeightStrides {
  int64_t group, o, c, h, w;
  bool operator==(const WeightStrides&) const = default;
};

// Returns the strides of a contiguous or channels-last weight.
inline WeightStrides dense_weight_strides(const Problem& p, bool channels_last) {
  const int64_t row = p.w.kernel, taps = p.h.kernel * row, in = p.in_channels, output = in * taps;
  if (channels_last) return {p.out_channels * output, output, 1, row * in, in};
  return {p.out_channels * output, output, taps, row, 1};
}

// Returns where the weights of an output channel begin; `channel` counts over all groups of `out_channels` each.
inline int64_t begin_of(const WeightStrides& s, int64_t out_channels, int64_t channel) {
  return channel / out_channels * s.group + channel % out_channels * s.o;
}

// One axis of a correlation, for one phase of the stride. Output first + i * step, for i in [0, out), is the sum over t in
// [0, taps) of the input at i * stride + low + t * spacing times the weight at index + t * index_step.
struct Phase {
  int64_t in, out, stride, low, taps, spacing, index, index_step, first, step;
  int64_t span() const { return taps > 0 ? (taps - 1) * spacing : 0; }
};

// A forward convolution has one phase. Its grad_input has one for each residue of the stride: inputs with the same residue
// meet the same taps, so that their gradients are a plain correlation of grad_output with those taps.
Phase forward_phase(const Axis& axis);
std::vector<Phase> grad_input_phases(const Axis& axis);

// Returns the phase with only those taps that some of the outputs [at, at + count) reads inside the input: all others meet
// padding alone, and add nothing.
Phase clipped(const Phase& s, int64_t at, int64_t count);
// Outputs or taps [first, last).
struct Range {
  int64_t first, last;
};

// Returns which of `count` outputs, `stride` positions apart, have a tap inside [0, size): the first tap of the first output
// reads position `low`, and its last tap `span` positions further.
inline Range outputs_inside(int64_t low, int64_t span, int64_t stride, int64_t count, int64_t size) {
  const int64_t high = low + span;
  const int64_t first = high >= 0 ? 0 : std::min(count, (stride - 1 - high) / stride);
  const int64_t last = low + (count - 1) * stride < size ? count : low >= size ? 0 : (size - 1 - low) / stride + 1;
  return {first, std::max(first, last)};
}

// Tells whether more than a fifth of the products of this axis are with padding.
bool worth_clipping(const Phase& s);

// The phases of the width, which copies of a correlation share.
class Phases {
 public:
  Phases() = default;
  Phases(std::vector<Phase> phases) : phases_(std::make_shared<const std::vector<Phase>>(std::move(phases))) {}
  operator const std::vector<Phase>&() const { return *phases_; }
  const Phase& front() const { return phases_->front(); }
  const Phase& operator[](size_t i) const { return (*phases_)[i]; }
  size_t size() const { return phases_->size(); }
  auto begin() const { return phases_->begin(); }
  auto end() const { return phases_->end(); }

 private:
  std::shared_ptr<const std::vector<Phase>> phases_;
};

// The scratch of a thread: half of the processor's L2 cache, from 256 KiB to 1 MiB. It is asked for once, when the library is
// loaded, so that layouts, and with them the bits of results, stay the same.
extern const int64_t kScratchFloats;

// output[o] = bias[o] + sum over input channels and taps; channels are counted in one group. All phases of the width run
// together, because their outputs interleave in one row. The shape is what layouts read: all but the tensors.
struct CorrelationShape {
  int64_t batch, groups, in_channels, out_channels;
  Phase h;
  Phases w;
  Strides input_strides;
  WeightStrides weight_strides;
  Strides output_strides;
  // The most products that one accumulator sums, in whole channels; in whole rows of taps where lanes hold several groups.
  int64_t longest_run;
  int64_t scratch = kScratchFloats;  // the numbers that a thread's scratch holds
};

// The planes of a volume that one run sums, each with weights of its own: how far apart they, and their packed weights, lie. If
// `ahead`, what the next output plane needs is prefetched: that plane, `y` further, and `fresh` planes of the input, the last of which
// lies `next` behind the first that is summed.
struct Planes {
  int64_t count = 1, x = 0, w = 0;
  bool ahead = false;
  int64_t y = 0, fresh = 0, next = 0;
};

template <class Real>
struct CorrelationOf : CorrelationShape {
  const Real* input;
  const Real* weight;
  const Real* bias;  // of all groups, or null
  Real* output;
  const EpilogueOf<Real>* epilogue;  // or null
  const Real* packed;                // the weight as the kernel packs it, or null
  Planes planes;                     // what it sums, by kernels that can (`Work::sums_planes`)
};
using Correlation = CorrelationOf<float>;

// grad_weight[o][c][kh][kw] = sum over samples and positions of grad_output[o] * input[c].
struct GradWeightShape {
  Problem problem;
  Strides input_strides, grad_output_strides;
  WeightStrides weight_strides;
  bool exchanged = false;  // `input` is the gradient of the output, and `grad_output` the input
  int64_t scratch = kScratchFloats;
};

template <class Real>
struct GradWeightOf : GradWeightShape {
  const Real* input;
  const Real* grad_output;
  Real* grad_weight;
  double* sums = nullptr;  // where the sums of grad_output are added, [part][channel of all groups], or null
};
using GradWeight = GradWeightOf<float>;

// Runs fn(begin, end, context) over ranges of [0, count) on the caller's threads.
using ParallelFor = void (*)(int64_t count, void (*fn)(int64_t begin, int64_t end, void* context), void* context);

}  // namespace groupwise
