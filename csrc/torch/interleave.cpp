// The operators groupwise::interleave and groupwise::interleave_halves, for float32 and bfloat16 on the CPU, with outputs of their own or given
// ones. They have no gradient of their own: where one is wanted, PyTorch's operators compute it.
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <tuple>

#include "kernels/interleave/interleave.h"
#include "torch/autograd.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using at::Tensor;
using Halves = std::tuple<Tensor, Tensor>;

void check(const Tensor& a, const Tensor& b) {
  const auto known = [](const Tensor& t) { return t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16; };
  for (const Tensor& t : {a, b})
    TORCH_CHECK(known(t) && t.scalar_type() == a.scalar_type() && t.layout() == at::kStrided,
                "groupwise: a and b must be dense float32 or bfloat16 tensors, of one dtype");
  TORCH_CHECK(a.dim() >= 2 && a.sym_sizes() == b.sym_sizes(),
              "groupwise: a and b must have one shape, with samples and channels");
}

std::vector<c10::SymInt> whole_shape(const Tensor& a) {
  std::vector<c10::SymInt> shape = a.sym_sizes().vec();
  shape[1] = shape[1] * 2;
  return shape;
}

Tensor composed(const Tensor& a, const Tensor& b) { return at::stack({a, b}, 2).flatten(1, 2); }
Halves composed_halves(const Tensor& a, const Tensor& b) {
  const std::vector<Tensor> parts = composed(a, b).chunk(2, 1);
  return {parts[0], parts[1]};
}

at::MemoryFormat format_of(const Tensor& a) { return a.suggest_memory_format(); }
Tensor new_whole(const Tensor& a) { return at::empty_symint(whole_shape(a), a.options().memory_format(format_of(a))); }
Tensor new_half(const Tensor& a) { return at::empty_like(a, a.options(), format_of(a)); }

// Fills the result, or its halves, whose memory format is that of a.
void compute(const Tensor& a, const Tensor& b, const Tensor& first, const Tensor& second) {
  if (a.numel() == 0) return;
  const at::MemoryFormat format = format_of(a);
  if (format == at::MemoryFormat::Contiguous) {
    if (second.defined()) {
      const auto [x, y] = composed_halves(a, b);
      first.copy_(x);
      second.copy_(y);
    } else {
      first.copy_(composed(a, b));
    }
    return;
  }
  const Tensor x = a.contiguous(format), y = b.contiguous(format);
  const Interleave work{a.numel() / a.size(1),
                        a.size(1),
                        a.scalar_type() == at::kBFloat16,
                        x.const_data_ptr(),
                        y.const_data_ptr(),
                        first.mutable_data_ptr(),
                        second.defined() ? second.mutable_data_ptr() : nullptr};
  interleave(work, {threads_here(), parallel_for});
}

Tensor forward(const Tensor& a, const Tensor& b) {
  check(a, b);
  const Tensor whole = new_whole(a);
  compute(a, b, whole, {});
  return whole;
}

Halves forward_halves(const Tensor& a, const Tensor& b) {
  check(a, b);
  const Tensor first = new_half(a), second = new_half(a);
  compute(a, b, first, second);
  return {first, second};
}

Tensor forward_meta(const Tensor& a, const Tensor& b) {
  check(a, b);
  return new_whole(a);
}

Halves forward_halves_meta(const Tensor& a, const Tensor& b) {
  check(a, b);
  return {new_half(a), new_half(a)};
}

void check_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_CHECK(out.scalar_type() == a.scalar_type() && out.device() == a.device(),
              "groupwise: out must have the dtype and the device of a");
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, a);
  at::assert_no_overlap(out, b);
}

Tensor& forward_out(const Tensor& a, const Tensor& b, Tensor& out) {
  check(a, b);
  at::native::resize_output_symint(out, whole_shape(a));
  check_out(out, a, b);
  if (a.numel() == 0) return out;
  const bool fits = out.is_contiguous(format_of(a));
  const Tensor made = fits ? out : new_whole(a);
  compute(a, b, made, {});
  if (!fits) out.copy_(made);
  return out;
}

std::tuple<Tensor&, Tensor&> forward_halves_out(const Tensor& a, const Tensor& b, Tensor& first, Tensor& second) {
  check(a, b);
  for (Tensor* out : {&first, &second}) {
    at::native::resize_output_symint(*out, a.sym_sizes());
    check_out(*out, a, b);
  }
  at::assert_no_overlap(first, second);
  const bool fits = first.is_contiguous(format_of(a)) && second.is_contiguous(format_of(a));
  const Tensor x = fits ? first : new_half(a), y = fits ? second : new_half(a);
  compute(a, b, x, y);
  if (!fits) {
    first.copy_(x);
    second.copy_(y);
  }
  return {first, second};
}

Tensor& out_meta(const Tensor& a, const Tensor& b, Tensor& out) {
  check(a, b);
  at::native::resize_output_symint(out, whole_shape(a));
  return out;
}

std::tuple<Tensor&, Tensor&> halves_out_meta(const Tensor& a, const Tensor& b, Tensor& first, Tensor& second) {
  check(a, b);
  at::native::resize_output_symint(first, a.sym_sizes());
  at::native::resize_output_symint(second, a.sym_sizes());
  return {first, second};
}

Tensor autograd(const Tensor& a, const Tensor& b) {
  if (differentiates(a) || differentiates(b)) {
    check(a, b);
    return composed(a, b);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward)>("groupwise::interleave", "");
  return op.call(a, b);
}

Halves autograd_halves(const Tensor& a, const Tensor& b) {
  if (differentiates(a) || differentiates(b)) {
    check(a, b);
    return composed_halves(a, b);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward_halves)>("groupwise::interleave_halves", "");
  return op.call(a, b);
}

Tensor& autograd_out(const Tensor& a, const Tensor& b, Tensor& out) {
  check_no_gradient("interleave", {a, b, out});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_out)>("groupwise::interleave", "out");
    op.call(a, b, out);
  }
  count_write(out);
  return out;
}

std::tuple<Tensor&, Tensor&> autograd_halves_out(const Tensor& a, const Tensor& b, Tensor& first, Tensor& second) {
  check_no_gradient("interleave", {a, b, first, second});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_halves_out)>("groupwise::interleave_halves", "out");
    op.call(a, b, first, second);
  }
  count_write(first), count_write(second);
  return {first, second};
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  m.def("interleave(Tensor a, Tensor b) -> Tensor", tags);
  m.def("interleave_halves(Tensor a, Tensor b) -> (Tensor, Tensor)", tags);
  // torch.compile takes no operator of others that returns what it writes to.
  m.def("interleave.out(Tensor a, Tensor b, *, Tensor(a!) out) -> Tensor(a!)", {at::Tag::flexible_layout});
  m.def("interleave_halves.out(Tensor a, Tensor b, *, Tensor(a!) first, Tensor(b!) second) -> (Tensor(a!), Tensor(b!))",
        {at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("interleave", &groupwise::forward);
  m.impl("interleave.out", &groupwise::forward_out);
  m.impl("interleave_halves", &groupwise::forward_halves);
  m.impl("interleave_halves.out", &groupwise::forward_halves_out);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("interleave", &groupwise::forward_meta);
  m.impl("interleave.out", &groupwise::out_meta);
  m.impl("interleave_halves", &groupwise::forward_halves_meta);
  m.impl("interleave_halves.out", &groupwise::halves_out_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("interleave", &groupwise::autograd);
  m.impl("interleave.out", &groupwise::autograd_out);
  m.impl("interleave_halves", &groupwise::autograd_halves);
  m.impl("interleave_halves.out", &groupwise::autograd_halves_out);
}
