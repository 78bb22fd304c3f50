// The operator groupwise::mean_pixels, the mean of each channel over all pixels, for float32 and bfloat16 on the CPU. It has
// no gradient of its own: where one is wanted, PyTorch's operators compute it.
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <vector>

#include "torch/autograd.h"
#include "torch/pool.h"
#include "torch/squeeze.h"

namespace groupwise {
namespace {

using at::Tensor;

void check(const Tensor& x) {
  const bool known = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(known && x.layout() == at::kStrided && x.dim() >= 3,
              "groupwise: x must be a dense float32 or bfloat16 tensor with samples, channels and pixels");
}

std::vector<c10::SymInt> shape_of(const Tensor& x, bool keepdim) {
  std::vector<c10::SymInt> shape{x.sym_size(0), x.sym_size(1)};
  if (keepdim) shape.resize(x.dim(), 1);
  return shape;
}

Tensor composed(const Tensor& x, bool keepdim) {
  std::vector<int64_t> pixels;
  for (int64_t i = 2; i < x.dim(); i++) pixels.push_back(i);
  return x.mean(pixels, keepdim);
}

// Fills y, whose samples and channels are neighbours in memory.
void compute(const Tensor& given, const Tensor& y) {
  if (given.numel() == 0) {
    y.fill_(std::numeric_limits<float>::quiet_NaN());
    return;
  }
  const Tensor x = given.contiguous(given.suggest_memory_format());
  const Squeeze s = squeeze_of(x, y);
  mean_pixels(s, {threads_here(), parallel_for});
}

Tensor forward(const Tensor& x, bool keepdim) {
  check(x);
  const Tensor y = at::empty_symint(shape_of(x, keepdim), x.options());
  compute(x, y);
  return y;
}

Tensor& forward_out(const Tensor& x, bool keepdim, Tensor& out) {
  check(x);
  TORCH_CHECK(out.scalar_type() == x.scalar_type() && out.device() == x.device(),
              "groupwise: out must have the dtype and the device of x");
  at::native::resize_output_symint(out, shape_of(x, keepdim));
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, x);
  if (out.is_contiguous()) {
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
  static const auto op = operator_named<decltype(forward)>("groupwise::mean_pixels", "");
  return op.call(x, keepdim);
}

Tensor& autograd_out(const Tensor& x, bool keepdim, Tensor& out) {
  check_no_gradient("mean_pixels", {x, out});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_out)>("groupwise::mean_pixels", "out");
    op.call(x, keepdim, out);
  }
  count_write(out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  m.def("mean_pixels(Tensor x, bool keepdim=True) -> Tensor", {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  // torch.compile takes no operator of others that returns what it writes to.
  m.def("mean_pixels.out(Tensor x, bool keepdim=True, *, Tensor(a!) out) -> Tensor(a!)", {at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("mean_pixels", &groupwise::forward);
  m.impl("mean_pixels.out", &groupwise::forward_out);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("mean_pixels", &groupwise::forward_meta);
  m.impl("mean_pixels.out", &groupwise::forward_out_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("mean_pixels", &groupwise::autograd);
  m.impl("mean_pixels.out", &groupwise::autograd_out);
}
