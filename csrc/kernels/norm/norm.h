// Batch normalisation with an activation and a residual sum: y = act((x - mean) * scale + shift + residual).
#pragma once

#include <cstdint>

#include "epilogue.h"
#include "kernels/layout.h"
#include "problem.h"

namespace groupwise {

// The activations that a batch normalisation knows, with their derivatives: the first ones.
constexpr int kActivations = 9;

// What a backward reads beside x to know the derivative: nothing, the residual, or the output.
enum class Kept { nothing, residual, output };

// Tells which of the two a sum with a residual keeps. The next layer keeps the output anyway, so that it takes no memory, where
// it says what the derivative is.
inline Kept kept_with_residual(Activation activation, float slope) {
  switch (activation) {
    case Activation::none: return Kept::nothing;
    case Activation::relu:
    case Activation::relu6:
    case Activation::sigmoid:
    case Activation::tanh: return Kept::output;
    // With a negative slope the output's sign is not that of the sum.
    case Activation::leaky_relu: return slope > 0 ? Kept::output : Kept::residual;
    default: return Kept::residual;
  }
}

// The values of a channel are counted over samples, then pixels. In memory they are rows of channels (channels_last) or planes of
// pixels (contiguous).
struct NormShape {
  int64_t samples, channels, pixels;
  bool rows;
  int64_t values() const { return samples * pixels; }
};

// Sums are made for a chunk of channels and a piece of their values at a time, and merged in the order of the pieces. The split
// depends on the shape alone, so that results have the same bits for any number of threads.
struct NormSplit {
  int64_t chunk, chunks, piece, pieces;
};
NormSplit split_of(const NormShape& shape);

// The most channels of a chunk.
constexpr int64_t kMostChunk = 512;
// Values that a pass sums in float32 before it goes on, or reads twice: they stay in the L1 cache.
constexpr int64_t kNormBlock = 8192;

// The mean of a piece, and the sum of squares about it; in a backward the sum of gradients, and that of gradients times x - mean.
struct Moments {
  double first, second;
};

// One forward or backward. Tensors have the same shape and layout, and vectors a number a channel.
struct Norm {
  NormShape shape;
  NormSplit split;
  Activation activation = Activation::none;
  float slope = 0;
  const float* x = nullptr;
  const float *mean = nullptr, *scale = nullptr, *shift = nullptr;
  Moments* moments = nullptr;  // [piece][channel]
  // Forward.
  const float* residual = nullptr;  // or null
  float* y = nullptr;               // or null in a backward, which can compute it again
  // Backward. `passed` is the gradient behind the activation, if it is wanted by itself: then the second sweep reads it.
  const float* grad = nullptr;
  Kept kind = Kept::nothing;
  const float* kept = nullptr;
  float* passed = nullptr;  // or null
  float* grad_x = nullptr;
  const float *mean_grad = nullptr, *coefficient = nullptr;
  bool centers = false;  // a gradient loses its mean and its part along x, which running statistics do not ask for
};

// How sweeps are threaded.
struct NormRun {
  int64_t threads;
  ParallelFor parallel_for;
};

// The numbers of the channels, which a forward fills where it is training and else reads; weight and bias may be null.
struct NormChannels {
  const float *weight, *bias;
  float *mean, *variance;
  double eps;
};

// Fills norm.y, and, if `training`, the mean and the biased variance.
void norm_forward(Norm norm, const NormChannels& channels, bool training, const NormRun& run);

// What a backward fills beside norm.passed; each may be null.
struct NormGrads {
  float *x, *weight, *bias;
};
void norm_backward(Norm norm, const NormChannels& channels, bool training, const NormGrads& grads, const NormRun& run);

// The two sweeps of a backward without a residual, by themselves. The first computes norm.y again and adds to the sums of each
// channel: those of the gradients, then those of their products with x - mean. It can be given some samples at a time. The second
// is given the sums of all samples. grads.x may be norm.grad where `rewritable`.
void norm_again(Norm norm, const NormChannels& channels, double* sums, const NormRun& run);
void norm_from_sums(Norm norm, const NormChannels& channels, bool training, const double* sums, const NormGrads& grads,
                    const NormRun& run);

// Tells whether a sweep reads each number once, before it writes there: no vector of channels is moved to overlap another.
bool rewritable(const NormShape& shape);

}  // namespace groupwise
