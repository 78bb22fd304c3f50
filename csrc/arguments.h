// The arguments of a convolution, and its tensors, in the words of the core, whichever library of PyTorch gives them.
#pragma once

#include <span>

#include "request.h"

namespace groupwise {

// The most dimensions of a tensor: batch, channels and three of space.
constexpr size_t kMostDimensions = 5;

// Whole numbers, one a dimension.
using Numbers = std::span<const int64_t>;

// The sizes and strides of a tensor.
struct Strided {
  Numbers sizes, strides;
};

// The arguments of aten::convolution as a Problem. For a transposed convolution, x is the output and y the input.
struct Call {
  Problem problem;
  int64_t dimensions;
  bool transposed, channels_last;
  int64_t x_channels, y_channels;
  Axis depth{1, 1, 1, 1, 0, 1};  // of a 3-D convolution
};

// Reads the arguments into `call`; one number may stand for all dimensions. False for a convolution that no kernel supports, and
// for wrong arguments, about which PyTorch raises its own error.
bool understand(const Strided& input, const Strided& weight, Numbers stride, Numbers padding, Numbers dilation, bool transposed,
                Numbers output_padding, int64_t groups, Call* call);

// Tells whether PyTorch takes a tensor of four dimensions for a channels_last one, or one of five for a channels_last_3d one.
bool like_channels_last(const Strided& t);

// Tells whether the elements lie side by side, in any order of the dimensions.
bool dense(const Strided& t);

Strides strides_of(const Strided& t);
WeightStrides strides_of_weight(const Strided& w, const Call& call);

// Returns the axis of the depth and its strides: those with which the kernels will read x and y, where null stands for a new
// tensor, and that of the weight, or of its gradient.
Depth depth_of(const Call& call, const Strided* x, const Strided* y, const Strided& weight, bool gradient);

// Tells whether the kernels can read a tensor of these strides in place.
bool readable(const Strides& s, const Call& call);

// Returns the strides of a new x, or y, in the call's format.
Strides new_strides(const Call& call, bool x);

// Returns the strides with which the kernels will read an x, or y.
Strides read_strides(const Strided& t, const Call& call, bool x);

// A depthwise weight is read as contiguous, because the stride of its single input channel says nothing.
WeightStrides weight_strides(const Strided& w, const Call& call);

// A weight's gradient gets the weight's own strides, as optimizers and DistributedDataParallel expect it, if these leave no gap.
WeightStrides gradient_strides(const Strided& w, const Call& call);

// The strides of new tensors, and of a contiguous or channels-last weight.
WeightStrides dense_weight_strides(const Call& call, bool channels_last);
Depth dense_depth(const Call& call, bool weight_last);

// Tells whether a gradient of the output fits the call's other tensors: `input` is the convolution's.
bool matches(const Strided& grad_output, const Strided& input, const Call& call);

// The sizes of a new x, or y: up to `kMostDimensions`. Returns how many there are.
int64_t sizes_of(const Call& call, bool x, int64_t* sizes);

}  // namespace groupwise
