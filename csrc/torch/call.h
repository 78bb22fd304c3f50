// The arguments of a convolution by PyTorch's own tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "arguments.h"

namespace groupwise {

using Ints = c10::SymIntArrayRef;

inline Strided strided_of(const at::Tensor& t) {
  const at::IntArrayRef sizes = t.sizes(), strides = t.strides();
  return {{sizes.data(), sizes.size()}, {strides.data(), strides.size()}};
}

// Returns the numbers; none where one is symbolic, which no kernel accepts.
Numbers known(Ints values);

// Returns the dtype of a tensor on the CPU that is strided, not empty and not negated lazily; else `other`.
Dtype dtype_of(const at::Tensor& t);

// Tells whether a tensor is of the kind that the kernels compute, and float32.
bool plain(const at::Tensor& t);
// The same of bfloat16.
bool plain_low(const at::Tensor& t);

// `understand` of tensors. False if one of them is not plain, or a number is not known.
bool understand(const at::Tensor& input, const at::Tensor& weight, Ints stride, Ints padding, Ints dilation, bool transposed,
                Ints output_padding, const c10::SymInt& groups, Call* call);

inline Strides strides_of(const at::Tensor& t) { return strides_of(strided_of(t)); }

// Returns the tensor itself if the kernels can read it, else a copy in the call's format.
at::Tensor as_read(const at::Tensor& t, const Call& call);

inline WeightStrides weight_strides(const at::Tensor& w, const Call& call) { return weight_strides(strided_of(w), call); }
inline Strides read_strides(const at::Tensor& t, const Call& call, bool x) { return read_strides(strided_of(t), call, x); }

// Returns the format of a tensor of so many dimensions.
inline at::MemoryFormat format(bool channels_last, size_t dimensions) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return dimensions == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

// Allocates a tensor of these sizes.
at::Tensor empty(Numbers sizes, bool channels_last, const at::TensorOptions& options);
// Allocates a new x, or y, in the call's format.
at::Tensor empty(const Call& call, bool x, const at::TensorOptions& options);

}  // namespace groupwise
