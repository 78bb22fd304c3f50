// Dispatches aten::convolution and aten::convolution_backward of CPU tensors to the kernels, as torch/binding.cpp does, with any
// release of PyTorch: all that this asks of it is in its stable C interface.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <stdexcept>
#include <string>

#include "binding/c_api.h"
#include "binding/convolution-inl.h"
#include "binding/guard.h"
#include "stable/pytorch.h"

namespace groupwise {
namespace {

using Tensor = Stable::Tensor;
namespace stable = torch::stable::detail;
using Whole = std::vector<int64_t>;

// The first release whose convolution_backward of the C interface reads the sizes of a bias right.
constexpr uint64_t kBiasRight = TORCH_VERSION_2_13_0;

// The arguments that both operators have, in their order on the stack from `at` on.
struct Settings {
  Whole stride, padding, dilation;
  bool transposed;
  Whole output_padding;
  int64_t groups;

  Settings(const StableIValue* at)
      : stride(stable::to<Whole>(at[0])),
        padding(stable::to<Whole>(at[1])),
        dilation(stable::to<Whole>(at[2])),
        transposed(stable::to<bool>(at[3])),
        output_padding(stable::to<Whole>(at[4])),
        groups(stable::to<int64_t>(at[5])) {}

  Convolution<Stable> of(const Tensor& input, const Tensor& weight) const {
    return {input, weight, stride, padding, dilation, transposed, output_padding, groups};
  }
};

int64_t count(const Whole& numbers) { return static_cast<int64_t>(numbers.size()); }

void convolution(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor input = Stable::own(stable::to<AtenTensorHandle>(stack[0])),
               weight = Stable::own(stable::to<AtenTensorHandle>(stack[1]));
  const std::optional<AtenTensorHandle> given = stable::to<std::optional<AtenTensorHandle>>(stack[2]);
  const Tensor bias = given ? Stable::own(*given) : nullptr;
  // PyTorch itself passes an undefined tensor here and there.
  const Tensor* const added = Stable::defined(bias) ? &bias : nullptr;
  const Settings s(stack + 3);
  const Tensor output = s.of(input, weight).forward(added, [&] {
    AtenTensorHandle b = bias.get(), made = nullptr;
    check(aoti_torch_cpu_convolution(input.get(), weight.get(), added ? &b : nullptr, s.stride.data(), count(s.stride),
                                     s.padding.data(), count(s.padding), s.dilation.data(), count(s.dilation), s.transposed,
                                     s.output_padding.data(), count(s.output_padding), s.groups, &made));
    return Stable::own(made);
  });
  stack[0] = stable::from(Stable::give(output));
}

// Sums over all dimensions but that of the channels, by PyTorch's operator.
Tensor sum_of(const Tensor& grad_output) {
  std::vector<int64_t> dimensions;
  for (int64_t i = 0; i < static_cast<int64_t>(Stable::strided_of(grad_output).sizes.size()); i++)
    if (i != 1) dimensions.push_back(i);
  StableIValue stack[] = {stable::from(Stable::give(grad_output)), stable::from(std::optional<Whole>(dimensions)),
                          stable::from(false), stable::from(std::nullopt)};
  check(torch_call_dispatcher("aten::sum", "dim_IntList", stack, TORCH_ABI_VERSION));
  return Stable::own(stable::to<AtenTensorHandle>(stack[0]));
}

void convolution_backward(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor grad_output = Stable::own(stable::to<AtenTensorHandle>(stack[0])),
               input = Stable::own(stable::to<AtenTensorHandle>(stack[1])),
               weight = Stable::own(stable::to<AtenTensorHandle>(stack[2]));
  const std::optional<Whole> bias_sizes = stable::to<std::optional<Whole>>(stack[3]);
  const Settings s(stack + 4);
  const std::vector<bool> mask = stable::to<std::vector<bool>>(stack[10]);
  const auto grads = s.of(input, weight).backward(grad_output, {mask[0], mask[1], mask[2]}, [&](std::array<bool, 3> wanted) {
    const bool wrong = aoti_torch_abi_version() < kBiasRight, sums = wanted[2] && wrong;
    const bool given = bias_sizes && !wrong;
    const int64_t* sizes = given ? bias_sizes->data() : nullptr;
    const int32_t asked[3] = {wanted[0], wanted[1], wanted[2] && !sums};
    AtenTensorHandle made[3] = {nullptr, nullptr, nullptr};
    std::array<Tensor, 3> results;
    if (asked[0] || asked[1] || asked[2]) {
      check(aoti_torch_cpu_convolution_backward(
          grad_output.get(), input.get(), weight.get(), given ? &sizes : nullptr, given ? count(*bias_sizes) : 0,
          s.stride.data(), count(s.stride), s.padding.data(), count(s.padding), s.dilation.data(), count(s.dilation),
          s.transposed, s.output_padding.data(), count(s.output_padding), s.groups, asked, 3, &made[0], &made[1], &made[2]));
      for (int i = 0; i < 3; i++) results[i] = Stable::own(made[i]);
    }
    if (sums) results[2] = sum_of(grad_output);
    return results;
  });
  for (int i = 0; i < 3; i++) stack[i] = stable::from(Stable::give(grads[i]));
}

}  // namespace
}  // namespace groupwise

int32_t groupwise_register() {
  // As in torch/binding.cpp, this is never undone.
  return groupwise::guarded(-1, [] {
    static const TorchLibraryHandle library = [] {
      if (const std::string missing = groupwise::lacks(); !missing.empty())
        throw std::runtime_error("this PyTorch has no " + missing);
      TorchLibraryHandle made = nullptr;
      groupwise::check(aoti_torch_library_init_impl("aten", "CPU", __FILE__, __LINE__, &made));
      groupwise::check(torch_library_impl(made, "convolution", groupwise::convolution, TORCH_ABI_VERSION));
      groupwise::check(torch_library_impl(made, "convolution_backward", groupwise::convolution_backward, TORCH_ABI_VERSION));
      return made;
    }();
    return library ? 1 : 0;
  });
}
