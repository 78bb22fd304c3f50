// A 1x1 convolution of bfloat16 images in channels_last, or a linear layer, with a constant weight and an epilogue. Sums are
// float32, and each result is rounded once.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/low/product.h"
#include "targets/isa.h"
#include "torch/call.h"
#include "torch/layer.h"
#include "torch/pool.h"
#include "torch/profiled.h"

namespace groupwise {
namespace {

using at::Tensor;

constexpr at::MemoryFormat kLast = at::MemoryFormat::ChannelsLast;

// A weight of four dimensions is that of a convolution. One of two takes the features of sources of any number of dimensions.
class LowProductLayer : public torch::CustomClassHolder {
 public:
  LowProductLayer(const Tensor& weight, const std::optional<Tensor>& bias, const Activate& before, bool residual,
                  const Activate& after)
      : target_(&kernels()), images_(weight.dim() == 4), residual_(residual) {
    TORCH_CHECK(weight.scalar_type() == at::kBFloat16 && weight.device().is_cpu() && weight.layout() == at::kStrided &&
                    (weight.dim() == 2 || (images_ && weight.size(2) * weight.size(3) == 1)) && weight.numel() > 0,
                "groupwise: a product of bfloat16 takes the bfloat16 weight of a 1x1 convolution in 2-D, or of a linear layer");
    TORCH_CHECK(weight.size(1) % 2 == 0, "groupwise: a product of bfloat16 takes an even number of inputs");
    TORCH_CHECK(residual || before.kind == Activation::none || after.kind == Activation::none,
                "groupwise: a layer without a residual has one activation");
    work_.before = residual || before.kind != Activation::none ? before : after;
    work_.after = after;
    work_.outputs = weight.size(0);
    work_.inputs = weight.size(1);
    const int64_t whole = round_up(work_.outputs, low_block(target_->lanes));
    const Tensor dense = weight.detach().flatten(1).contiguous();
    packed_ = at::empty({whole * work_.inputs}, dense.options());
    pack_low_product(target_->lanes, work_.outputs, work_.inputs, static_cast<const Bfloat16*>(dense.const_data_ptr()),
                     static_cast<Bfloat16*>(packed_.mutable_data_ptr()));
    bias_ = at::zeros({whole}, dense.options().dtype(at::kFloat));
    if (bias && bias->defined()) {
      TORCH_CHECK(plain(*bias) && bias->dim() == 1 && bias->size(0) == work_.outputs,
                  "groupwise: a bias has one float32 an output channel");
      bias_.narrow(0, 0, work_.outputs).copy_(bias->detach());
    }
    work_.packed = static_cast<const Bfloat16*>(packed_.const_data_ptr());
    work_.bias = bias_.const_data_ptr<float>();
  }

  Tensor empty(const Tensor& source) const {
    check(source);
    return at::empty(shape(source), options(source));
  }

  // The residual may be `out` itself, and must not overlap it in another way.
  void run(const Tensor& given, const Tensor& residual, const Tensor& out) const {
    const at::AutoDispatchBelowADInplaceOrView below;
    check(given);
    const std::vector<int64_t> wanted = shape(given);
    const auto fits = [&](const Tensor& t) { return plain_low(t) && t.sizes() == at::IntArrayRef(wanted); };
    TORCH_CHECK(fits(out), "groupwise: a layer cannot write its output to a tensor of another shape or dtype");
    TORCH_CHECK(residual.defined() == residual_, "groupwise: a layer is run with a residual if it was made with one");
    TORCH_CHECK(!residual_ || fits(residual), "groupwise: a residual has the output's shape and dtype");
    at::assert_no_internal_overlap(out);
    at::assert_no_overlap(out, given);
    if (residual_) at::assert_no_partial_overlap(out, residual);
    LowProduct work = work_;
    work.pixels = given.numel() / work.inputs;
    const Tensor source = apart(given) > 0 ? given : dense(given);
    const bool direct = is_dense(out);
    const Tensor to = direct ? out : at::empty(wanted, options(out));
    const Tensor added = residual_ ? dense(residual) : residual;
    work.x_pixel = apart(source);
    work.y_pixel = work.outputs;
    work.x = static_cast<const Bfloat16*>(source.const_data_ptr());
    work.y = static_cast<Bfloat16*>(to.mutable_data_ptr());
    if (residual_) work.residual = static_cast<const Bfloat16*>(added.const_data_ptr());
    const Profiled shown("low_product", *target_, {&source, &added});
    multiply_low(work, *target_, {threads_here(), parallel_for});
    if (!direct) out.copy_(to);
  }

 private:
  int64_t channels_at(const Tensor& t) const { return images_ ? 1 : t.dim() - 1; }

  void check(const Tensor& t) const {
    TORCH_CHECK(plain_low(t) && (images_ ? t.dim() == 4 : t.dim() >= 1) && t.size(channels_at(t)) == work_.inputs,
                "groupwise: this layer takes bfloat16 ", images_ ? "images" : "rows", " of ", work_.inputs,
                " numbers on the CPU");
  }

  std::vector<int64_t> shape(const Tensor& source) const {
    std::vector<int64_t> sizes = source.sizes().vec();
    sizes[channels_at(source)] = work_.outputs;
    return sizes;
  }

  at::TensorOptions options(const Tensor& t) const {
    const at::TensorOptions found = t.options().requires_grad(false);
    return images_ ? found.memory_format(kLast) : found;
  }

  bool is_dense(const Tensor& t) const { return images_ ? t.is_contiguous(kLast) : t.is_contiguous(); }
  Tensor dense(const Tensor& t) const { return images_ ? t.contiguous(kLast) : t.contiguous(); }

  // Returns how many numbers are between the pixels of a source, which are evenly apart, or 0 where they are not.
  int64_t apart(const Tensor& t) const {
    if (is_dense(t)) return work_.inputs;
    if (!images_ || t.stride(1) != 1) return 0;
    const int64_t pixel = t.size(3) > 1 ? t.stride(3) : t.size(2) > 1 ? t.stride(2) : t.stride(0);
    const bool rows = t.size(2) == 1 || t.stride(2) == pixel * t.size(3);
    const bool images = t.size(0) == 1 || t.stride(0) == pixel * t.size(2) * t.size(3);
    return rows && images && pixel >= work_.inputs ? pixel : 0;
  }

  const Kernels* target_;
  LowProduct work_{};
  Tensor packed_, bias_;
  bool images_, residual_;
};

using Self = c10::intrusive_ptr<LowProductLayer>;

Self make(const Tensor& weight, const std::optional<Tensor>& bias, const std::string& before,
          const std::vector<double>& before_numbers, bool residual, const std::string& after,
          const std::vector<double>& after_numbers) {
  return c10::make_intrusive<LowProductLayer>(weight, bias, activate_of(before, before_numbers), residual,
                                              activate_of(after, after_numbers));
}

Tensor run_out(const Self& self, const Tensor& source, const std::optional<Tensor>& residual, const Tensor& out) {
  self->run(source, residual.value_or(Tensor()), out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using groupwise::LowProductLayer;
  using groupwise::Self;
  m.class_<LowProductLayer>("LowProduct")
      .def(torch::init(&groupwise::make))
      .def("run",
           [](const Self& self, const at::Tensor& source, const std::optional<at::Tensor>& residual) {
             return groupwise::run_out(self, source, residual, self->empty(source));
           })
      .def("run_out", &groupwise::run_out);
}
