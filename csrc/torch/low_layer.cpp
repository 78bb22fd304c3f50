// A grouped convolution of bfloat16 images in channels_last, with constant weights and an epilogue. Sums are float32, and each
// result is rounded once.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/low/low.h"
#include "targets/isa.h"
#include "torch/call.h"
#include "torch/layer.h"
#include "torch/pool.h"
#include "torch/profiled.h"

namespace groupwise {
namespace {

using at::Tensor;
using Numbers = std::vector<int64_t>;

constexpr at::MemoryFormat kLast = at::MemoryFormat::ChannelsLast;

// The floats of the widest vectors: groups that fill them, or share them, do so with all others.
constexpr int64_t kMostLanes = 16;

class LowLayer : public torch::CustomClassHolder {
 public:
  LowLayer(const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride, Numbers padding, Numbers dilation,
           const Activate& before, bool residual, const Activate& after)
      : target_(&kernels()), residual_(residual) {
    const int64_t group = weight.dim() == 4 ? weight.size(1) : 0;
    TORCH_CHECK(
        group == 1 ? plain(weight) : group > 1 && weight.scalar_type() == at::kBFloat16 && weight.device().is_cpu(),
        "groupwise: a layer of bfloat16 takes the float32 weight of a depthwise convolution in 2-D, or the bfloat16 weight "
        "of one with groups");
    TORCH_CHECK(group == 1 || (group % 2 == 0 && (kMostLanes % group == 0 || group > kMostLanes) &&
                               weight.size(0) % group == 0 && weight.size(0) >= kMostLanes),
                "groupwise: a layer of bfloat16 takes groups of an even number of channels that divides ", kMostLanes,
                " or exceeds it, and so many channels or more in all");
    TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                "groupwise: stride, padding and dilation must have two numbers");
    for (int i = 0; i < 2; i++)
      TORCH_CHECK(stride[i] > 0 && padding[i] >= 0 && dilation[i] > 0,
                  "groupwise: stride and dilation must be positive, and padding not negative");
    TORCH_CHECK(residual || before.kind == Activation::none || after.kind == Activation::none,
                "groupwise: a layer without a residual has one activation");
    work_.before = residual || before.kind != Activation::none ? before : after;
    work_.after = after;
    work_.channels = weight.size(0);
    work_.group = work_.inputs = group;
    work_.h = {0, 0, weight.size(2), stride[0], padding[0], dilation[0]};
    work_.w = {0, 0, weight.size(3), stride[1], padding[1], dilation[1]};
    const Tensor dense = weight.detach().contiguous();
    Tensor added;
    if (bias && bias->defined()) {
      TORCH_CHECK(plain(*bias) && bias->dim() == 1 && bias->size(0) == work_.channels,
                  "groupwise: a bias has one float32 an output channel");
      added = bias->detach().contiguous();
    }
    const int64_t lanes = target_->lanes;
    const WeightStrides strides =
        dense_weight_strides(Problem{0, work_.channels / group, group, group, work_.h, work_.w}, false);
    if (group > 1) {
      packed_ = at::empty({packed_low_pairs(lanes, work_)}, dense.options());
      pack_low_pairs(work_, lanes, static_cast<const Bfloat16*>(dense.const_data_ptr()), strides, {0, work_.vectors(lanes)},
                     static_cast<Bfloat16*>(packed_.mutable_data_ptr()));
      work_.pairs = static_cast<const Bfloat16*>(packed_.const_data_ptr());
      bias_ = at::zeros({round_up(work_.channels, lanes)}, dense.options().dtype(at::kFloat));
      if (added.defined()) bias_.narrow(0, 0, work_.channels).copy_(added);
      work_.bias = bias_.const_data_ptr<float>();
      return;
    }
    packed_ = at::empty({packed_low_floats(lanes, work_)}, dense.options());
    pack_low(work_, lanes, dense.const_data_ptr<float>(), strides, added.defined() ? added.const_data_ptr<float>() : nullptr,
             packed_.mutable_data_ptr<float>());
    work_.packed = packed_.const_data_ptr<float>();
  }

  Tensor empty(const Tensor& source) const {
    const LowGrouped work = work_of(source);
    return at::empty({work.batch, work.channels, work.h.out, work.w.out},
                     source.options().requires_grad(false).memory_format(kLast));
  }

  // The residual may be `out` itself, and must not overlap it in another way.
  void run(const Tensor& given, const Tensor& residual, const Tensor& out) const {
    const at::AutoDispatchBelowADInplaceOrView below;
    LowGrouped work = work_of(given);
    const Numbers shape{work.batch, work.channels, work.h.out, work.w.out};
    const auto fits = [&](const Tensor& t) { return plain_low(t) && t.sizes() == at::IntArrayRef(shape); };
    TORCH_CHECK(fits(out), "groupwise: a layer cannot write its output to a tensor of another shape or dtype");
    TORCH_CHECK(residual.defined() == residual_, "groupwise: a layer is run with a residual if it was made with one");
    TORCH_CHECK(!residual_ || fits(residual), "groupwise: a residual has the output's shape and dtype");
    at::assert_no_internal_overlap(out);
    at::assert_no_overlap(out, given);
    if (residual_) at::assert_no_partial_overlap(out, residual);
    const Tensor source = given.contiguous(kLast);
    const bool direct = out.is_contiguous(kLast);
    const Tensor to = direct ? out : at::empty(shape, out.options().memory_format(kLast));
    work.x_strides = dense_strides(work.batch, work.channels, work.h.in, work.w.in, true);
    work.y_strides = dense_strides(work.batch, work.channels, work.h.out, work.w.out, true);
    work.x = static_cast<const Bfloat16*>(source.const_data_ptr());
    work.y = static_cast<Bfloat16*>(to.mutable_data_ptr());
    Tensor added;
    if (residual_) {
      added = residual.contiguous(kLast);
      work.residual = static_cast<const Bfloat16*>(added.const_data_ptr());
    }
    const Profiled shown("low", *target_, {&source, &added});
    correlate_low(work, *target_, {threads_here(), parallel_for});
    if (!direct) out.copy_(to);
  }

 private:
  LowGrouped work_of(const Tensor& source) const {
    LowGrouped work = work_;
    TORCH_CHECK(plain_low(source) && source.dim() == 4 && source.size(1) == work.channels,
                "groupwise: this layer takes bfloat16 images of ", work.channels, " channels on the CPU");
    work.batch = source.size(0);
    const std::pair<Axis*, int64_t> axes[] = {{&work.h, source.size(2)}, {&work.w, source.size(3)}};
    for (const auto& [axis, size] : axes) {
      const int64_t room = size + 2 * axis->pad - axis->dilation * (axis->kernel - 1) - 1;
      TORCH_CHECK(room >= 0, "groupwise: the kernel is larger than the padded image");
      axis->in = size;
      axis->out = room / axis->stride + 1;
    }
    return work;
  }

  const Kernels* target_;
  LowGrouped work_{};
  Tensor packed_, bias_;
  bool residual_;
};

using Self = c10::intrusive_ptr<LowLayer>;

Self make(const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride, Numbers padding, Numbers dilation,
          const std::string& before, const std::vector<double>& before_numbers, bool residual, const std::string& after,
          const std::vector<double>& after_numbers) {
  return c10::make_intrusive<LowLayer>(weight, bias, std::move(stride), std::move(padding), std::move(dilation),
                                       activate_of(before, before_numbers), residual, activate_of(after, after_numbers));
}

Tensor run_out(const Self& self, const Tensor& source, const std::optional<Tensor>& residual, const Tensor& out) {
  self->run(source, residual.value_or(Tensor()), out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using groupwise::LowLayer;
  using groupwise::Self;
  m.class_<LowLayer>("LowLayer")
      .def(torch::init(&groupwise::make))
      .def("run",
           [](const Self& self, const at::Tensor& source, const std::optional<at::Tensor>& residual) {
             return groupwise::run_out(self, source, residual, self->empty(source));
           })
      .def("run_out", &groupwise::run_out);
}
