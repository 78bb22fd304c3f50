#include "torch/directions.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include "plan/recording.h"
#include "run.h"
#include "sharing.h"
#include "torch/pool.h"
#include "torch/switches.h"

namespace groupwise {

using at::Tensor;

namespace {

// Tells whether PyTorch computes a gradient of the weight right. With oneDNN off, PyTorch 2.13 takes an unbatched channels_last
// input, which reaches this as a batch of one with another stride, for contiguous in one place and not in another.
bool right_in_pytorch(const Call& call, Direction direction) {
  const Problem& p = call.problem;
  const bool doubtful = direction == Direction::grad_weight && call.channels_last && p.batch == 1 && p.groups > 1;
  return !doubtful || depthwise(p) || at::globalContext().userEnabledMkldnn();
}

// Returns the gradient of the weight, and writes that of the bias if it gets a tensor for it.
Tensor grad_weight(const Call& call, const Plan& plan, const Tensor& x, const Tensor& y, const Tensor& weight,
                   const Tensor& bias) {
  const Tensor from = as_read(x, call), grad = as_read(y, call);
  const Tensor to = weight.is_non_overlapping_and_dense()
                        ? at::empty_strided(weight.sizes(), weight.strides(), weight.options())
                        : at::empty(weight.sizes(), weight.options());
  Tensors t{};
  t.x = const_cast<float*>(from.const_data_ptr<float>());
  t.y = const_cast<float*>(grad.const_data_ptr<float>());
  t.w = to.mutable_data_ptr<float>();
  if (bias.defined()) t.grad_bias = bias.mutable_data_ptr<float>();
  plan.work->run(t, parallel_for);
  return to;
}

}  // namespace

std::shared_ptr<const Plan> decide(const Call& call, Direction direction, const Tensor* x, const Tensor* y,
                                   const Tensor& weight) {
  const Request request{direction,
                        call.problem,
                        call.channels_last,
                        true,
                        threads_here(),
                        call.dimensions,
                        x ? read_strides(*x, call, true) : new_strides(call, true),
                        y ? read_strides(*y, call, false) : new_strides(call, false),
                        direction == Direction::grad_weight ? gradient_strides(weight, call) : weight_strides(weight, call),
                        call.transposed,
                        right_in_pytorch(call, direction)};
  return plan_of(request, forced());
}

Tensor correlate(const Call& call, const Plan& plan, const Tensor& read, const Tensor& weight, const Tensor& bias) {
  const bool forward = plan.request.direction == Direction::forward;
  const Tensor from = as_read(read, call);
  const Tensor w = depthwise(call.problem) ? weight.contiguous() : weight;
  const Tensor b = bias.defined() ? bias.contiguous() : bias;
  const Tensor to = empty(call, !forward, read.options());
  Tensors t{};
  const Tensor& x = forward ? from : to;
  const Tensor& y = forward ? to : from;
  t.x = const_cast<float*>(x.const_data_ptr<float>());
  t.y = const_cast<float*>(y.const_data_ptr<float>());
  t.w = const_cast<float*>(w.const_data_ptr<float>());
  t.bias = b.defined() ? b.const_data_ptr<float>() : nullptr;
  plan.work->run(t, parallel_for);
  return to;
}

std::array<Tensor, 3> gradients(const Call& call, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                std::array<bool, 3>* left_over, const std::function<void(std::array<bool, 3>)>& theirs) {
  std::array<bool, 3>& left = *left_over;
  const std::array<bool, 3> mask = left;
  const bool transposed = call.transposed;
  std::array<Tensor, 3> grads;
  // Whether threads share the gradient of the weight, and are awake when the bias's follows.
  bool shared = false;
  if (mask[0]) {
    const auto ours = [&](const Plan& plan) { return correlate(call, plan, grad_output, weight, Tensor()); };
    const auto plan = tuned(decide(call, transposed ? Direction::forward : Direction::grad_input,
                                   transposed ? &grad_output : nullptr, transposed ? nullptr : &grad_output, weight),
                            ours, [&] { theirs({true, false, false}); });
    record(plan);
    if (plan->work) {
      grads[0] = ours(*plan);
      left[0] = false;
    }
  }
  if (mask[1]) {
    const Tensor &x = transposed ? grad_output : input, &y = transposed ? input : grad_output;
    const auto ours = [&](const Plan& plan) { return grad_weight(call, plan, x, y, weight, grads[2]); };
    const auto plan = tuned(decide(call, Direction::grad_weight, &x, &y, weight), ours, [&] { theirs({false, true, false}); });
    record(plan);
    if (plan->work) {
      shared = plan->work->facts.threads > 1;
      if (mask[2] && !transposed && plan->work->sums_grad_output()) {
        grads[2] = at::empty({call.y_channels}, weight.options());
        left[2] = false;
      }
      grads[1] = ours(*plan);
      left[1] = false;
    }
  }
  // PyTorch sums the bias's gradient in the pass that makes the weight's, and would run that pass for the bias alone.
  if (left[2] && !left[1]) {
    const Tensor from = as_read(grad_output, call);
    const int64_t height = call.dimensions == 1 ? 1 : from.size(2);
    shared |= static_cast<double>(from.numel()) >= shared_from(kernels(), at::get_num_threads());
    grads[2] = at::empty({from.size(1)}, weight.options());
    sum_channels(from.size(0), from.size(1), height, from.size(from.dim() - 1), from.const_data_ptr<float>(), strides_of(from),
                 grads[2].mutable_data_ptr<float>(), shared, parallel_for);
    left[2] = false;
  }
  return grads;
}

}  // namespace groupwise
