// The operator groupwise::norm_convolution_backward, for float32 on the CPU: the gradients of the convolution of
// activation(batch_norm(x)), from x alone. What the convolution read is computed again, some samples at a time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels/layout.h"
#include "kernels/norm/norm.h"
#include "torch/norm.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// Which gradients are wanted: of x, weight and bias of the normalisation, and of filters and offsets of the convolution.
using WantedHere = std::array<bool, 5>;
using at::IntArrayRef;

constexpr const char* kSchema =
    "norm_convolution_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, "
    "Tensor filters, int[]? offset_sizes, int[] stride, int[] padding, int[] dilation, int groups, bool training, float eps, "
    "str activation, float slope, int block, bool[5] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)";

// A convolution without its input.
struct Filters {
  const Tensor& weight;
  at::OptionalIntArrayRef bias_sizes;
  IntArrayRef stride, padding, dilation;
  int64_t groups;

  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, std::array<bool, 3> wanted) const {
    const std::vector<int64_t> nothing(stride.size(), 0);
    return at::convolution_backward(grad, x, weight, bias_sizes, stride, padding, dilation, false, nothing, groups, wanted);
  }
};

void add(Tensor* sum, const Tensor& part) {
  if (!part.defined()) return;
  if (sum->defined()) {
    sum->add_(part);
  } else {
    *sum = part;
  }
}

Results backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const Tensor& mean, const Tensor& variance, const Tensor& filters, at::OptionalIntArrayRef offset_sizes,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training, double eps,
                 std::string_view activation, double slope, int64_t block, WantedHere wanted) {
  TORCH_CHECK(block > 0, "groupwise: a block must have at least one byte, not ", block);
  Norm whole = norm_of(x, activation_of(activation), slope);
  const Tensor from = x.contiguous(x.suggest_memory_format());
  const Tensor w = channel_vector(weight, x, "weight"), b = channel_vector(bias, x, "bias");
  const Tensor m = channel_vector(mean, x, "mean"), v = channel_vector(variance, x, "variance");
  const NormChannels channels{read(w), read(b), written(m), written(v), eps};
  const NormRun run{threads_here(), parallel_for};
  const Filters convolution{filters, offset_sizes, stride, padding, dilation, groups};
  const bool normalises = wanted[0] || wanted[1] || wanted[2], convolves = wanted[3] || wanted[4];
  if (!normalises && !convolves) return {};
  Tensor grad_y, grad_filters, grad_offsets;
  // A gradient of an input asks for its shape alone.
  if (normalises) grad_y = like(std::get<0>(convolution.backward(grad, from, {true, false, false})), x, "grad");

  const int64_t samples = x.size(0), bytes = static_cast<int64_t>(x.nbytes());
  const int64_t blocks = convolves ? std::min(samples, ceil_div(bytes, block)) : 1;
  std::vector<double> sums(2 * x.size(1));
  // Nothing else holds the gradient of y. That behind the activation overwrites it, so that no exponential is computed twice.
  const bool over = rewritable(whole.shape), passes = over && costly(whole.activation);
  Tensor y;
  for (int64_t i = 0, first = 0; i < blocks; i++) {
    const int64_t last = (i + 1) * samples / blocks, count = last - first;
    const auto taken = [&](const Tensor& t) { return blocks == 1 ? t : t.narrow(0, first, count); };
    const Tensor part = taken(from), grad_part = normalises ? taken(grad_y) : Tensor();
    if (convolves && !(y.defined() && y.size(0) == count)) y = new_like(part);
    {
      RECORD_FUNCTION("groupwise::batch_norm_act_again", c10::ArrayRef<const c10::IValue>{});
      Norm n = norm_of(part, whole.activation, slope);
      n.x = read(part);
      n.y = written(y);
      n.grad = read(grad_part);
      if (passes && normalises) n.passed = written(grad_part);
      if (normalises) {
        norm_again(n, channels, sums.data(), run);
      } else {
        norm_forward(n, channels, false, run);
      }
    }
    if (convolves) {
      const auto [of_x, of_filters, of_offsets] = convolution.backward(taken(grad), y, {false, wanted[3], wanted[4]});
      add(&grad_filters, of_filters);
      add(&grad_offsets, of_offsets);
    }
    first = last;
  }
  y.reset();
  Tensor grad_x, grad_weight, grad_bias;
  if (normalises) {
    RECORD_FUNCTION("groupwise::batch_norm_act_from_sums", c10::ArrayRef<const c10::IValue>{});
    if (wanted[0]) grad_x = over ? grad_y : new_like(x);
    if (wanted[1]) grad_weight = new_vector(x);
    if (wanted[2]) grad_bias = new_vector(x);
    whole.x = read(from);
    whole.grad = read(grad_y);
    if (passes) whole.activation = Activation::none;
    norm_from_sums(whole, channels, training, sums.data(), {written(grad_x), written(grad_weight), written(grad_bias)}, run);
  }
  return {grad_x, grad_weight, grad_bias, grad_filters, grad_offsets};
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) { m.def(groupwise::kSchema, {at::Tag::flexible_layout}); }
TORCH_LIBRARY_IMPL(groupwise, CPU, m) { m.impl("norm_convolution_backward", &groupwise::backward); }
