// Dispatches aten::convolution and aten::convolution_backward of CPU tensors to the kernels; unsupported cases fall back to
// PyTorch. Autograd, double backward, vmap, autocast and torch.compile all call these two operators.
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <torch/library.h>

#include "binding/c_api.h"
#include "binding/convolution-inl.h"
#include "binding/guard.h"
#include "torch/call.h"
#include "torch/exact.h"

namespace groupwise {
namespace {

Convolution<Exact> made(const at::Tensor& input, const at::Tensor& weight, Ints stride, Ints padding, Ints dilation,
                        bool transposed, Ints output_padding, const c10::SymInt& groups) {
  return {input,           weight,     known(stride),         known(padding),
          known(dilation), transposed, known(output_padding), groups.maybe_as_int().value_or(0)};
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Ints stride,
                       Ints padding, Ints dilation, bool transposed, Ints output_padding, c10::SymInt groups) {
  return made(input, weight, stride, padding, dilation, transposed, output_padding, groups)
      .forward(bias && bias->defined() ? &*bias : nullptr, [&] {
        return at::compositeexplicitautograd::convolution_symint(input, weight, bias, stride, padding, dilation, transposed,
                                                                 output_padding, groups);
      });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                                    const at::Tensor& weight,
                                                                    at::OptionalSymIntArrayRef bias_sizes, Ints stride,
                                                                    Ints padding, Ints dilation, bool transposed,
                                                                    Ints output_padding, c10::SymInt groups,
                                                                    std::array<bool, 3> mask) {
  auto [x, w, b] =
      made(input, weight, stride, padding, dilation, transposed, output_padding, groups)
          .backward(grad_output, mask, [&](std::array<bool, 3> wanted) -> std::array<at::Tensor, 3> {
            auto [dx, dw, db] = at::compositeexplicitautograd::convolution_backward_symint(
                grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, wanted);
            return {dx, dw, db};
          });
  return {x, w, b};
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
