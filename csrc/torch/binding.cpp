// Dispatches aten::convolution and aten::convolution_backward of CPU tensors to the kernels; unsupported cases fall back to
// PyTorch. Autograd, double backward, vmap, autocast and torch.compile all call these two operators.
#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <torch/library.h>

#include <optional>

#include "plan/recording.h"
#include "torch/c_api.h"
#include "torch/directions.h"
#include "torch/guard.h"
#include "torch/switches.h"

namespace groupwise {
namespace {

using at::Tensor;

// Tells whether torch.jit.trace records what this thread calls. It does not record aten::convolution itself but the operators
// below it, so a kernel that writes into a tensor from at::empty would leave a graph of aten::empty alone.
bool traced() { return at::tracer::impl::is_dispatch_enabled(); }

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
  std::array<Tensor, 3> grads;
  std::array<bool, 3> left = mask;
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
      understand(input, weight, stride, padding, dilation, transposed, output_padding, groups, &call) && matches())
    grads = gradients(call, grad_output, input, weight, &left, theirs);
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
