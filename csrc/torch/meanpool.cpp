// The operator groupwise::mean_pool2d, for float32 on the CPU in channels_last; PyTorch's computes the other format, and gradients.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>
#include <torch/library.h>

#include "kernels/meanpool/meanpool.h"
#include "torch/autograd.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using at::Tensor;

constexpr const char* kSchema = "mean_pool2d(Tensor x, bool keepdim=True) -> Tensor";
constexpr const char* kOutSchema = "mean_pool2d.out(Tensor x, bool keepdim=True, *, Tensor(a!) out) -> Tensor(a!)";

void check(const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.layout() == at::kStrided && x.dim() == 4,
              "groupwise: x must be a dense float32 tensor of four dimensions");
}

Tensor composed(const Tensor& x, bool keepdim) { return at::mean(x, at::IntArrayRef{2, 3}, keepdim); }

c10::SymDimVector shape_of(const Tensor& x, bool keepdim) {
  c10::SymDimVector shape{x.sym_size(0), x.sym_size(1)};
  if (keepdim) shape.resize(4, 1);
  return shape;
}

// Computes y, whose numbers follow each other.
void compute(const Tensor& x, const Tensor& y) {
  if (y.numel() == 0) return;
  MeanPool p{x.size(0), x.size(1), x.size(2) * x.size(3), nullptr, nullptr};
  p.x = x.const_data_ptr<float>();
  p.y = y.mutable_data_ptr<float>();
  mean_pool(p, {threads_here(), parallel_for});
}

// Tells whether the channels of a pixel are neighbours, and pixels too. A single pixel, or no number, is PyTorch's.
bool is_ours(const Tensor& x) {
  return x.numel() > 0 && x.size(2) * x.size(3) > 1 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor forward(const Tensor& x, bool keepdim) {
  check(x);
  if (!is_ours(x)) return composed(x, keepdim);
  const Tensor y = at::empty_symint(shape_of(x, keepdim), x.options());
  compute(x, y);
  return y;
}

Tensor& forward_out(const Tensor& x, bool keepdim, Tensor& out) {
  check(x);
  TORCH_CHECK(out.scalar_type() == at::kFloat && out.device() == x.device(),
              "groupwise: out must be a float32 tensor on the device of x");
  at::native::resize_output_symint(out, shape_of(x, keepdim));
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, x);
  if (is_ours(x) && out.is_contiguous()) {
    compute(x, out);
  } else {
    out.copy_(forward(x, keepdim));
  }
  return out;
}

Tensor forward_meta(const Tensor& x, bool keepdim) {
  check(x);
  return at::empty_symint(shape_of(x, keepdim), x.options());
}

Tensor& forward_out_meta(const Tensor& x, bool keepdim, Tensor& out) {
  check(x);
  at::native::resize_output_symint(out, shape_of(x, keepdim));
  return out;
}

Tensor autograd(const Tensor& x, bool keepdim) {
  if (differentiates(x)) {
    check(x);
    return composed(x, keepdim);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward)>("groupwise::mean_pool2d", "");
  return op.call(x, keepdim);
}

Tensor& autograd_out(const Tensor& x, bool keepdim, Tensor& out) {
  check_no_gradient("mean_pool2d", {x, out});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_out)>("groupwise::mean_pool2d", "out");
    op.call(x, keepdim, out);
  }
  count_write(out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  m.def(groupwise::kSchema, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  // torch.compile takes no operator of others that returns what it writes to.
  m.def(groupwise::kOutSchema, {at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("mean_pool2d", &groupwise::forward);
  m.impl("mean_pool2d.out", &groupwise::forward_out);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("mean_pool2d", &groupwise::forward_meta);
  m.impl("mean_pool2d.out", &groupwise::forward_out_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("mean_pool2d", &groupwise::autograd);
  m.impl("mean_pool2d.out", &groupwise::autograd_out);
}
