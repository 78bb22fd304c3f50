#include "torch/call.h"

#include <ATen/ops/empty.h>

#include <optional>

namespace groupwise {

using at::Tensor;

namespace {

Dtype dtype_named(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Dtype::float32;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kHalf: return Dtype::float16;
    case at::kDouble: return Dtype::float64;
    default: return Dtype::other;
  }
}

}  // namespace

Numbers known(Ints values) {
  const std::optional<at::IntArrayRef> ints = c10::asIntArrayRefSlowOpt(values);
  return ints ? Numbers(ints->data(), ints->size()) : Numbers();
}

Dtype dtype_of(const Tensor& t) {
  const bool usable = t.defined() && t.layout() == at::kStrided && t.device().is_cpu() && t.numel() > 0 && !t.is_neg();
  return usable ? dtype_named(t.scalar_type()) : Dtype::other;
}

bool plain(const Tensor& t) { return dtype_of(t) == Dtype::float32; }
bool plain_low(const Tensor& t) { return dtype_of(t) == Dtype::bfloat16; }

bool understand(const Tensor& input, const Tensor& weight, Ints stride, Ints padding, Ints dilation, bool transposed,
                Ints output_padding, const c10::SymInt& groups, Call* call) {
  return plain(input) && plain(weight) &&
         understand(strided_of(input), strided_of(weight), known(stride), known(padding), known(dilation), transposed,
                    known(output_padding), groups.maybe_as_int().value_or(0), call);
}

Tensor as_read(const Tensor& t, const Call& call) {
  return readable(strides_of(t), call) ? t : t.contiguous(format(call.channels_last, t.dim()));
}

Tensor empty(Numbers sizes, bool channels_last, const at::TensorOptions& options) {
  // Only images have formats.
  return at::empty({sizes.data(), sizes.size()}, channels_last ? options.memory_format(format(true, sizes.size())) : options);
}

Tensor empty(const Call& call, bool x, const at::TensorOptions& options) {
  int64_t sizes[kMostDimensions];
  const auto count = static_cast<size_t>(sizes_of(call, x, sizes));
  return empty(Numbers(sizes, count), call.channels_last, options);
}

}  // namespace groupwise
