// The arguments of a convolution, and its tensors, in the words of the core.
#pragma once

#include <ATen/core/Tensor.h>

#include "request.h"

namespace groupwise {

using Ints = c10::SymIntArrayRef;

// The arguments of aten::convolution as a Problem. For a transposed convolution, x is the output and y the input.
struct Call {
  Problem problem;
  int64_t dimensions;
  bool transposed, channels_last;
  int64_t x_channels, y_channels;
};

// Tells whether a tensor is of the kind that the kernels compute.
bool plain(const at::Tensor& t);
// The same of bfloat16.
bool plain_low(const at::Tensor& t);

// Reads the arguments into `call`. False for a convolution that no kernel supports, and for wrong arguments, about which
// PyTorch raises its own error.
bool understand(const at::Tensor& input, const at::Tensor& weight, Ints stride, Ints padding, Ints dilation, bool transposed,
                Ints output_padding, const c10::SymInt& groups, Call* call);

Strides strides_of(const at::Tensor& t);
WeightStrides strides_of_weight(const at::Tensor& w, const Call& call);

// Tells whether the kernels can read a tensor of these strides in place.
bool readable(const Strides& s, const Call& call);

// Returns the tensor itself if the kernels can read it, else a copy in the call's format.
at::Tensor as_read(const at::Tensor& t, const Call& call);

// Returns the strides of a new x, or y, in the call's format.
Strides new_strides(const Call& call, bool x);

// Returns the strides with which the kernels will read an x, or y.
Strides read_strides(const at::Tensor& t, const Call& call, bool x);

// A depthwise weight is read as contiguous, because the stride of its single input channel says nothing.
WeightStrides weight_strides(const at::Tensor& w, const Call& call);

// A weight's gradient gets the weight's own strides, as optimizers and DistributedDataParallel expect it, if these leave no gap.
WeightStrides gradient_strides(const at::Tensor& w, const Call& call);

// Allocates a new x, or y, in the call's format.
at::Tensor empty(const Call& call, bool x, const at::TensorOptions& options);

}  // namespace groupwise
