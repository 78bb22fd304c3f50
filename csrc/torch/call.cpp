#include "torch/call.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>

namespace groupwise {

using at::Tensor;

namespace {

// Reads one value a dimension; a single value stands for all. False if one is unknown or out of range.
bool read(Ints values, int64_t dimensions, int64_t least, int64_t most, int64_t* out) {
  if (static_cast<int64_t>(values.size()) != dimensions && values.size() != 1) return false;
  for (int64_t i = 0; i < dimensions; i++) {
    const std::optional<int64_t> value = values[values.size() == 1 ? 0 : i].maybe_as_int();
    // The plan's limit is checked first, so that nothing below overflows.
    if (!value || *value < least || *value > most) return false;
    out[i] = *value;
  }
  return true;
}

at::MemoryFormat format(const Call& call) {
  return call.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

bool plain_of(const Tensor& t, at::ScalarType dtype) {
  return t.defined() && t.scalar_type() == dtype && t.layout() == at::kStrided && t.device().is_cpu() && t.numel() > 0 &&
         !t.is_neg();
}

}  // namespace

bool plain(const Tensor& t) { return plain_of(t, at::kFloat); }
bool plain_low(const Tensor& t) { return plain_of(t, at::kBFloat16); }

bool understand(const Tensor& input, const Tensor& weight, Ints stride, Ints padding, Ints dilation, bool transposed,
                Ints output_padding, const c10::SymInt& groups, Call* call) {
  if (!plain(input) || !plain(weight)) return false;
  const at::IntArrayRef sizes = input.sizes(), weights = weight.sizes();
  const int64_t dimensions = static_cast<int64_t>(sizes.size()) - 2;
  if (dimensions < 1 || dimensions > 2 || weights.size() != sizes.size()) return false;
  int64_t s[2], p[2], d[2], extra[2] = {0, 0};
  if (!read(stride, dimensions, 1, kMostStep, s) || !read(padding, dimensions, 0, kMostTaps, p) ||
      !read(dilation, dimensions, 1, kMostStep, d))
    return false;
  if (transposed && !read(output_padding, dimensions, 0, kMostStep, extra)) return false;
  const int64_t g = groups.maybe_as_int().value_or(0), channels = sizes[1];
  if (g < 1 || channels % g != 0 || weights[0] % g != 0) return false;
  if (transposed ? weights[0] != channels : weights[1] * g != channels) return false;
  Problem& problem = call->problem;
  problem.batch = sizes[0];
  problem.groups = g;
  problem.out_channels = weights[0] / g;
  problem.in_channels = weights[1];
  Axis* axes[2] = {&problem.h, &problem.w};
  problem.h = {1, 1, 1, 1, 0, 1};
  for (int64_t i = 0; i < dimensions; i++) {
    const int64_t size = sizes[2 + i], kernel = weights[2 + i], reach = d[i] * (kernel - 1) + 1;
    int64_t other;
    if (transposed) {
      if (extra[i] >= std::max(s[i], d[i])) return false;
      other = (size - 1) * s[i] - 2 * p[i] + reach + extra[i];
    } else {
      if (size + 2 * p[i] < reach) return false;
      other = (size + 2 * p[i] - reach) / s[i] + 1;
    }
    if (other < 1) return false;
    *axes[2 - dimensions + i] = {transposed ? other : size, transposed ? size : other, kernel, s[i], p[i], d[i]};
  }
  call->dimensions = dimensions;
  call->transposed = transposed;
  // PyTorch computes in channels_last if either tensor is.
  call->channels_last = dimensions == 2 && (input.unsafeGetTensorImpl()->is_strides_like_channels_last() ||
                                            weight.unsafeGetTensorImpl()->is_strides_like_channels_last());
  call->x_channels = g * problem.in_channels;
  call->y_channels = g * problem.out_channels;
  return true;
}

Strides strides_of(const Tensor& t) {
  const at::IntArrayRef s = t.strides(), sizes = t.sizes();
  const bool flat = s.size() == 3;
  return meaningful({s[0], s[1], flat ? 0 : s[2], s.back()}, sizes[0], sizes[1], flat ? 1 : sizes[2], sizes.back());
}

bool readable(const Strides& s, const Call& call) { return s.c == 1 || (s.w == 1 && !call.channels_last); }

Tensor as_read(const Tensor& t, const Call& call) { return readable(strides_of(t), call) ? t : t.contiguous(format(call)); }

Strides new_strides(const Call& call, bool x) {
  const Problem& p = call.problem;
  return x ? dense_strides(p.batch, call.x_channels, p.h.in, p.w.in, call.channels_last)
           : dense_strides(p.batch, call.y_channels, p.h.out, p.w.out, call.channels_last);
}

Strides read_strides(const Tensor& t, const Call& call, bool x) {
  const Strides s = strides_of(t);
  return readable(s, call) ? s : new_strides(call, x);
}

WeightStrides strides_of_weight(const Tensor& w, const Call& call) {
  const at::IntArrayRef s = w.strides();
  return {call.problem.out_channels * s[0], s[0], s[1], s.size() == 3 ? w.sizes()[2] * s[2] : s[2], s.back()};
}

WeightStrides weight_strides(const Tensor& w, const Call& call) {
  return depthwise(call.problem) ? dense_weight_strides(call.problem, false) : strides_of_weight(w, call);
}

WeightStrides gradient_strides(const Tensor& w, const Call& call) {
  return w.is_non_overlapping_and_dense() ? strides_of_weight(w, call) : dense_weight_strides(call.problem, false);
}

Tensor empty(const Call& call, bool x, const at::TensorOptions& options) {
  const Problem& p = call.problem;
  const int64_t channels = x ? call.x_channels : call.y_channels, width = x ? p.w.in : p.w.out;
  if (call.dimensions == 1) return at::empty({p.batch, channels, width}, options);
  return at::empty({p.batch, channels, x ? p.h.in : p.h.out, width}, options.memory_format(format(call)));
}

}  // namespace groupwise
