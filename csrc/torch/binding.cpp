// Dispatches aten::convolution and aten::convolution_backward of CPU tensors to the kernels; unsupported cases fall back to
// PyTorch. Autograd, double backward, vmap, autocast and torch.compile all call these two operators.
#include <ATen/Context.h>
#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "binding/c_api.h"
#include "binding/convolution-inl.h"
#include "binding/guard.h"
#include "torch/call.h"
#include "torch/pool.h"
#include "torch/profiled.h"

namespace groupwise {
namespace {

// PyTorch's own tensors and functions, whose layouts are those of one release.
struct Exact {
  using Tensor = at::Tensor;
  using Profiled = groupwise::Profiled;

  static bool plain(const Tensor& t) { return groupwise::plain(t); }
  static Strided strided_of(const Tensor& t) { return groupwise::strided_of(t); }
  static const float* read_of(const Tensor& t) { return t.const_data_ptr<float>(); }
  static float* write_of(const Tensor& t) { return t.mutable_data_ptr<float>(); }
  static Tensor contiguous(const Tensor& t, bool channels_last) { return t.contiguous(format(channels_last)); }
  static Tensor empty(const Tensor& like, Numbers sizes, bool channels_last) {
    const at::TensorOptions options = like.options();
    return at::empty({sizes.data(), sizes.size()}, channels_last ? options.memory_format(format(true)) : options);
  }
  static Tensor empty_strided(const Tensor& like, Numbers sizes, Numbers strides) {
    return at::empty_strided({sizes.data(), sizes.size()}, {strides.data(), strides.size()}, like.options());
  }
  // torch.jit.trace does not record aten::convolution itself but the operators below it, so a kernel that writes into a tensor from
  // at::empty would leave a graph of aten::empty alone.
  static bool traced() { return at::tracer::impl::is_dispatch_enabled(); }
  static bool deterministic() { return at::globalContext().deterministicAlgorithms(); }
  static bool has_onednn() { return at::globalContext().userEnabledMkldnn(); }
  static bool in_parallel_region() { return at::in_parallel_region(); }
  static int64_t threads() { return at::get_num_threads(); }
  static constexpr ParallelFor parallel_for = groupwise::parallel_for;

 private:
  static at::MemoryFormat format(bool channels_last) {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
};

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
