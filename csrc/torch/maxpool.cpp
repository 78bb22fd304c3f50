// The operator groupwise::max_pool2d, for float32 and bfloat16 on the CPU in channels_last; PyTorch's computes the other format, and gradients.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/maxpool/maxpool.h"
#include "torch/autograd.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr const char* kSchema =
    "max_pool2d(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding=0, bool ceil_mode=False) -> Tensor";
constexpr const char* kOutSchema =
    "max_pool2d.out(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding=0, bool ceil_mode=False, *, Tensor(a!) out) "
    "-> Tensor(a!)";

void check(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding) {
  const bool known = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(known && x.layout() == at::kStrided && x.dim() == 4,
              "groupwise: x must be a dense float32 or bfloat16 tensor of four dimensions");
  TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
              "groupwise: kernel_size, stride and padding must have two numbers");
  for (int i = 0; i < 2; i++) {
    TORCH_CHECK(kernel[i] > 0 && stride[i] > 0, "groupwise: kernel_size and stride must be positive");
    TORCH_CHECK(padding[i] >= 0 && padding[i] <= kernel[i] / 2, "groupwise: padding must be at most half of kernel_size");
  }
}

// The rule is PyTorch's: in ceil mode the last window begins inside the image or the padding before it.
int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t room = size + 2 * padding - kernel;
  TORCH_CHECK(room >= 0 || (ceil_mode && room + stride > 0), "groupwise: kernel_size ", kernel,
              " is larger than the padded input");
  int64_t count = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (count - 1) * stride >= size + padding) count--;
  return count;
}

std::vector<int64_t> shape_of(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode) {
  std::vector<int64_t> shape = x.sizes().vec();
  for (int i = 0; i < 2; i++) shape[2 + i] = outputs(x.size(2 + i), kernel[i], stride[i], padding[i], ceil_mode);
  return shape;
}

void compute(const Tensor& given, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, const Tensor& y) {
  if (y.numel() == 0) return;
  const Tensor x = given.contiguous(at::MemoryFormat::ChannelsLast);
  MaxPool p{x.size(0), x.size(1), x.size(2), x.size(3), y.size(2), y.size(3), {}, {}, {}, false, nullptr, nullptr};
  std::copy_n(kernel.begin(), 2, p.kernel);
  std::copy_n(stride.begin(), 2, p.stride);
  std::copy_n(padding.begin(), 2, p.padding);
  p.low = x.scalar_type() == at::kBFloat16;
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  max_pool(p, {threads_here(), parallel_for});
}

Tensor forward(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode) {
  check(x, kernel, stride, padding);
  if (x.suggest_memory_format() != at::MemoryFormat::ChannelsLast)
    return at::max_pool2d(x, kernel, stride, padding, 1, ceil_mode);
  const Tensor y =
      at::empty(shape_of(x, kernel, stride, padding, ceil_mode), x.options().memory_format(x.suggest_memory_format()));
  compute(x, kernel, stride, padding, y);
  return y;
}

Tensor& forward_out(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode, Tensor& out) {
  check(x, kernel, stride, padding);
  TORCH_CHECK(out.scalar_type() == x.scalar_type() && out.device() == x.device(),
              "groupwise: out must have the dtype and the device of x");
  at::native::resize_output(out, shape_of(x, kernel, stride, padding, ceil_mode));
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, x);
  const at::MemoryFormat last = at::MemoryFormat::ChannelsLast;
  if (x.suggest_memory_format() == last && out.is_contiguous(last)) {
    compute(x, kernel, stride, padding, out);
  } else {
    out.copy_(forward(x, kernel, stride, padding, ceil_mode));
  }
  return out;
}

Tensor forward_meta(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode) {
  check(x, kernel, stride, padding);
  return std::get<0>(at::max_pool2d_with_indices(x, kernel, stride, padding, 1, ceil_mode));
}

Tensor& forward_out_meta(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                         Tensor& out) {
  at::native::resize_output_symint(out, forward_meta(x, kernel, stride, padding, ceil_mode).sym_sizes());
  return out;
}

Tensor autograd(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode) {
  if (differentiates(x)) {
    check(x, kernel, stride, padding);
    return at::max_pool2d(x, kernel, stride, padding, 1, ceil_mode);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward)>("groupwise::max_pool2d", "");
  return op.call(x, kernel, stride, padding, ceil_mode);
}

Tensor& autograd_out(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                     Tensor& out) {
  check_no_gradient("max_pool2d", {x, out});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_out)>("groupwise::max_pool2d", "out");
    op.call(x, kernel, stride, padding, ceil_mode, out);
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
  m.impl("max_pool2d", &groupwise::forward);
  m.impl("max_pool2d.out", &groupwise::forward_out);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("max_pool2d", &groupwise::forward_meta);
  m.impl("max_pool2d.out", &groupwise::forward_out_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("max_pool2d", &groupwise::autograd);
  m.impl("max_pool2d.out", &groupwise::autograd_out);
}
