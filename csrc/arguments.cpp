#include "arguments.h"

#include <algorithm>

namespace groupwise {
namespace {

// Reads one value a dimension. False if one is out of range.
bool read(Numbers values, int64_t dimensions, int64_t least, int64_t most, int64_t* out) {
  if (static_cast<int64_t>(values.size()) != dimensions && values.size() != 1) return false;
  for (int64_t i = 0; i < dimensions; i++) {
    const int64_t value = values[values.size() == 1 ? 0 : i];
    // The plan's limit is checked first, so that nothing below overflows.
    if (value < least || value > most) return false;
    out[i] = value;
  }
  return true;
}

WeightStrides contiguous_weight(const Call& call) { return dense_weight_strides(call, false); }

}  // namespace

WeightStrides dense_weight_strides(const Call& call, bool channels_last) {
  WeightStrides s = dense_weight_strides(call.problem, channels_last);
  const int64_t depth = call.depth.kernel;
  s.group *= depth;
  s.o *= depth;
  if (!channels_last) s.c *= depth;
  return s;
}

bool understand(const Strided& input, const Strided& weight, Numbers stride, Numbers padding, Numbers dilation, bool transposed,
                Numbers output_padding, int64_t groups, Call* call) {
  const Numbers sizes = input.sizes, weights = weight.sizes;
  const int64_t dimensions = static_cast<int64_t>(sizes.size()) - 2;
  if (dimensions < 1 || dimensions > 3 || weights.size() != sizes.size()) return false;
  int64_t s[3], p[3], d[3], extra[3] = {0, 0, 0};
  if (!read(stride, dimensions, 1, kMostStep, s) || !read(padding, dimensions, 0, kMostTaps, p) ||
      !read(dilation, dimensions, 1, kMostStep, d))
    return false;
  if (transposed && !read(output_padding, dimensions, 0, kMostStep, extra)) return false;
  const int64_t channels = sizes[1];
  if (groups < 1 || channels % groups != 0 || weights[0] % groups != 0) return false;
  if (transposed ? weights[0] != channels : weights[1] * groups != channels) return false;
  Problem& problem = call->problem;
  problem.batch = sizes[0];
  problem.groups = groups;
  problem.out_channels = weights[0] / groups;
  problem.in_channels = weights[1];
  Axis* axes[3] = {&call->depth, &problem.h, &problem.w};
  call->depth = problem.h = {1, 1, 1, 1, 0, 1};
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
    *axes[3 - dimensions + i] = {transposed ? other : size, transposed ? size : other, kernel, s[i], p[i], d[i]};
  }
  call->dimensions = dimensions;
  call->transposed = transposed;
  // PyTorch computes in channels_last if either tensor is.
  call->channels_last = dimensions >= 2 && (like_channels_last(input) || like_channels_last(weight));
  call->x_channels = groups * problem.in_channels;
  call->y_channels = groups * problem.out_channels;
  return true;
}

bool like_channels_last(const Strided& t) {
  const int last = static_cast<int>(t.sizes.size()) - 1;
  if (last < 3 || last > 4 || t.strides[1] == 0) return false;
  int64_t least = 0;
  // From the channels over the columns outwards to the samples.
  for (int step = 0; step <= last; step++) {
    const int i = step == 0 ? 1 : step == last ? 0 : last + 1 - step;
    if (t.sizes[i] == 0 || t.strides[i] < least) return false;
    // With one pixel a sample, the strides of both formats are alike. PyTorch calls that contiguous.
    if (i == 0 && least == t.strides[1]) return false;
    least = t.strides[i] * std::max<int64_t>(1, t.sizes[i]);
  }
  return true;
}

bool dense(const Strided& t) {
  // Dimensions of one element say nothing. The others are sought by their strides, from the smallest on.
  int64_t elements = 1, found = 1;
  for (const int64_t size : t.sizes) elements *= size;
  for (bool more = true; more && found < elements;) {
    more = false;
    for (size_t i = 0; i < t.sizes.size() && !more; i++) {
      if (t.sizes[i] == 1 || t.strides[i] != found) continue;
      found *= t.sizes[i];
      more = true;
    }
  }
  return found == elements;
}

Strides strides_of(const Strided& t) {
  const size_t rows = t.sizes.size() - 2;
  const bool flat = t.sizes.size() == 3;
  return meaningful({t.strides[0], t.strides[1], flat ? 0 : t.strides[rows], t.strides.back()}, t.sizes[0], t.sizes[1],
                    flat ? 1 : t.sizes[rows], t.sizes.back());
}

bool readable(const Strides& s, const Call& call) { return s.c == 1 || (s.w == 1 && !call.channels_last); }

Strides new_strides(const Call& call, bool x) {
  const Problem& p = call.problem;
  const int64_t channels = x ? call.x_channels : call.y_channels, depth = x ? call.depth.in : call.depth.out;
  const int64_t h = x ? p.h.in : p.h.out, w = x ? p.w.in : p.w.out;
  // The rows of all planes follow each other.
  return meaningful(dense_strides(p.batch, channels, depth * h, w, call.channels_last), p.batch, channels, h, w);
}

Strides read_strides(const Strided& t, const Call& call, bool x) {
  const Strides s = strides_of(t);
  return readable(s, call) ? s : new_strides(call, x);
}

WeightStrides strides_of_weight(const Strided& w, const Call& call) {
  const Numbers s = w.strides;
  const int64_t row = s.size() == 3 ? w.sizes[2] * s[2] : s[s.size() - 2];
  return {call.problem.out_channels * s[0], s[0], s[1], row, s.back()};
}

WeightStrides weight_strides(const Strided& w, const Call& call) {
  return depthwise(call.problem) ? contiguous_weight(call) : strides_of_weight(w, call);
}

WeightStrides gradient_strides(const Strided& w, const Call& call) {
  return dense(w) ? strides_of_weight(w, call) : contiguous_weight(call);
}

Depth depth_of(const Call& call, const Strided* x, const Strided* y, const Strided& weight, bool gradient) {
  if (call.dimensions < 3) return {};
  Depth depth = dense_depth(call, false);
  const auto in_place = [&](const Strided* t) { return t && t->sizes[2] > 1 && readable(strides_of(*t), call); };
  if (in_place(x)) depth.x = x->strides[2];
  if (in_place(y)) depth.y = y->strides[2];
  if (gradient ? dense(weight) : !depthwise(call.problem)) depth.w = weight.strides[2];
  return depth;
}

Depth dense_depth(const Call& call, bool weight_last) {
  const Problem& p = call.problem;
  const Axis& a = call.depth;
  const int64_t x = p.h.in * p.w.in, y = p.h.out * p.w.out, taps = p.h.kernel * p.w.kernel;
  return {a,
          a.in == 1            ? 0
          : call.channels_last ? x * call.x_channels
                               : x,
          a.out == 1           ? 0
          : call.channels_last ? y * call.y_channels
                               : y,
          weight_last ? taps * p.in_channels : taps};
}

bool matches(const Strided& grad_output, const Strided& input, const Call& call) {
  const Problem& p = call.problem;
  const Numbers sizes = grad_output.sizes;
  if (sizes.size() != input.sizes.size() || sizes[0] != p.batch) return false;
  if (sizes[1] != (call.transposed ? call.x_channels : call.y_channels)) return false;
  if (sizes.back() != (call.transposed ? p.w.in : p.w.out)) return false;
  if (call.dimensions == 3 && sizes[2] != (call.transposed ? call.depth.in : call.depth.out)) return false;
  return call.dimensions == 1 || sizes[sizes.size() - 2] == (call.transposed ? p.h.in : p.h.out);
}

int64_t sizes_of(const Call& call, bool x, int64_t* sizes) {
  const Problem& p = call.problem;
  int64_t count = 0;
  sizes[count++] = p.batch;
  sizes[count++] = x ? call.x_channels : call.y_channels;
  if (call.dimensions == 3) sizes[count++] = x ? call.depth.in : call.depth.out;
  if (call.dimensions >= 2) sizes[count++] = x ? p.h.in : p.h.out;
  sizes[count++] = x ? p.w.in : p.w.out;
  return count;
}

}  // namespace groupwise
