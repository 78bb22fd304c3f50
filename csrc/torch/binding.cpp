// Dispatches aten::convolution and aten::convolution_backward of CPU tensors to the kernels; unsupported cases fall back to
// PyTorch. Autograd, double backward, vmap, autocast and torch.compile all call these two operators.
#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "torch/c_api.h"
#include "torch/call.h"
#include "torch/guard.h"
#include "torch/pool.h"
#include "torch/profiled.h"
#include "torch/switches.h"
#include "torch/tuning.h"
#include "plan/recording.h"
#include "plan/plan.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {
namespace {

using at::Tensor;

// Tells whether torch.jit.trace records what this thread calls. It does not record aten::convolution itself but the operators
// below it, so a kernel that writes into a tensor from at::empty would leave a graph of aten::empty alone.
bool traced() { return at::tracer::impl::is_dispatch_enabled(); }

// Tells whether PyTorch computes a gradient of the weight right. With oneDNN off, PyTorch 2.13 takes an unbatched channels_last
// input, which reaches this as a batch of one with another stride, for contiguous in one place and not in another.
bool right_in_pytorch(const Call& call, Direction direction) {
  const Problem& p = call.problem;
  const bool doubtful = direction == Direction::grad_weight && call.channels_last && p.batch == 1 && p.groups > 1;
  return !doubtful || depthwise(p) || at::globalContext().userEnabledMkldnn();
}

// Plans one direction of the call. The tensors are those that it reads; the one that it writes is null.
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

// Runs a forward, which reads x and returns y, or a grad_input, which reads y and returns x.
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
  const Profiled shown(plan, {&from, &w, &b});
  plan.work->run(t, parallel_for);
  return to;
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
  const Profiled shown(plan, {&from, &grad});
  plan.work->run(t, parallel_for);
  return to;
}

// Measures the kernels that can compute what was planned, if that was asked for and not done before, and plans anew.
// `ours(plan)` and `theirs()` compute it.
template <class Ours, class Theirs>
std::shared_ptr<const Plan> tuned(std::shared_ptr<const Plan> plan, Ours&& ours, Theirs&& theirs) {
  if (!plan->open || !tuning()) return plan;
  // PyTorch's kernel may end the process.
  if (!plan->safe) return plan;
  // Other threads would be measured too, and a choice by time is no deterministic one.
  if (at::in_parallel_region() || at::globalContext().deterministicAlgorithms()) return plan;
  const Request& request = plan->request;
  const std::optional<Measured> before = remembered(request);
  // Another thread may have measured it since.
  if ((before ? before->tries : 0) == plan->tries) {
    std::vector<Contender> contenders{{kPyTorch, theirs}};
    std::vector<std::pair<const char*, std::string>> refused;
    const std::vector<Candidate> candidates = candidates_of(request, &refused);
    // The budget may end before the last: those that are expected to be the fastest come first.
    const std::vector<Speedup> expected = judge(request, candidates).speedups;
    std::vector<size_t> order = left_out(candidates, before);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return expected[a].middle > expected[b].middle; });
    for (const size_t i : order) {
      Plan one = *plan;
      one.kernel = candidates[i].kernel;
      one.work = candidates[i].work;
      contenders.push_back({candidates[i].kernel->name, [&ours, one] { ours(one); }});
    }
    if (!measure(request, contenders, before.value_or(Measured{}))) return plan;
  }
  return plan_again(request);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Ints stride, Ints padding,
                   Ints dilation, bool transposed, Ints output_padding, c10::SymInt groups) {
  Call call;
  const auto bias_fits = [&] {
    return !bias || !bias->defined() ||
           (plain(*bias) && bias->dim() == 1 && bias->size(0) == (transposed ? call.x_channels : call.y_channels));
  };
  const auto theirs = [&] {
    return at::compositeexplicitautograd::convolution_symint(input, weight, bias, stride, padding, dilation, transposed,
                                                             output_padding, groups);
  };
  if (dispatched() && !traced() &&
      understand(input, weight, stride, padding, dilation, transposed, output_padding, groups, &call) && bias_fits()) {
    const auto ours = [&](const Plan& plan) { return correlate(call, plan, input, weight, bias.value_or(Tensor())); };
    const auto plan = tuned(decide(call, transposed ? Direction::grad_input : Direction::forward, transposed ? nullptr : &input,
                                   transposed ? &input : nullptr, weight),
                            ours, theirs);
    record(plan);
    if (plan->work) return ours(*plan);
  }
  return theirs();
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                        at::OptionalSymIntArrayRef bias_sizes, Ints stride, Ints padding,
                                                        Ints dilation, bool transposed, Ints output_padding, c10::SymInt groups,
                                                        std::array<bool, 3> mask) {
  Call call;
  Tensor grads[3];
  std::array<bool, 3> left = mask;
  // Whether threads share the gradient of the weight, and are awake when the bias's follows.
  bool shared = false;
  const auto matches = [&] {
    const Problem& p = call.problem;
    const Axis &h = p.h, &w = p.w;
    if (!plain(grad_output) || grad_output.dim() != input.dim() || grad_output.size(0) != p.batch) return false;
    if (grad_output.size(1) != (transposed ? call.x_channels : call.y_channels)) return false;
    const int64_t last = grad_output.dim() - 1;
    if (grad_output.size(last) != (transposed ? w.in : w.out)) return false;
    return call.dimensions == 1 || grad_output.size(2) == (transposed ? h.in : h.out);
  };
  const auto theirs = [&](std::array<bool, 3> wanted) {
    return at::compositeexplicitautograd::convolution_backward_symint(grad_output, input, weight, bias_sizes, stride, padding,
                                                                      dilation, transposed, output_padding, groups, wanted);
  };
  if (dispatched() && !traced() &&
      understand(input, weight, stride, padding, dilation, transposed, output_padding, groups, &call) && matches()) {
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
      const auto plan =
          tuned(decide(call, Direction::grad_weight, &x, &y, weight), ours, [&] { theirs({false, true, false}); });
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
      sum_channels(from.size(0), from.size(1), height, from.size(from.dim() - 1), from.const_data_ptr<float>(),
                   strides_of(from), grads[2].mutable_data_ptr<float>(), shared, parallel_for);
      left[2] = false;
    }
  }
  if (left[0] || left[1] || left[2]) {
    auto [x, w, b] = theirs(left);
    if (left[0]) grads[0] = x;
    if (left[1]) grads[1] = w;
    if (left[2]) grads[2] = b;
  }
  return {grads[0], grads[1], grads[2]};
}

}  // namespace
}  // namespace groupwise

int32_t groupwise_register() {
  // The registration is never undone: to remove a kernel while another thread calls it is not safe. `dispatched` decides.
  return groupwise::guarded(-1, [] {
    static torch::Library* library = [] {
      auto* made = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
      made->impl("convolution", &groupwise::convolution);
      made->impl("convolution_backward", &groupwise::convolution_backward);
      return made;
    }();
    return library ? 1 : 0;
  });
}
