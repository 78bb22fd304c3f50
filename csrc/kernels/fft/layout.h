// Lays out a long convolution along one axis as products of spectra (overlap-save).
#pragma once

#include "kernels/layout.h"
#include "request.h"

namespace groupwise {

template <class Real>
struct TensorsOf;
using Tensors = TensorsOf<float>;

// The other axis has one position and one tap. Blocks of `block` outputs each read `length` inputs, of which neighbours share
// `reach` - 1. A weight's gradient sums over such blocks.
struct FftLayout {
  Axis axis;
  bool high;      // the axis is the height
  int64_t reach;  // of the taps: (kernel - 1) * dilation + 1
  int64_t length, block, blocks;
  int64_t groups;    // that are computed together
  int64_t floats;    // of the buffers and spectra of those groups
  int64_t products;  // multiply-accumulates of all transforms and products, about
};

// Lays out a request that has such an axis.
FftLayout lay_out_fft(const Request& request);

// Computes a request by the caller's FFT. Returns false if a value of a result, before its bias, is not finite: an infinite or
// NaN input reaches all outputs of its row then, and not those alone that see it.
using FftRun = bool (*)(const Request& request, const FftLayout& layout, const Tensors& tensors);

// Sets the FFT; without one, the kernel refuses all requests. This core has none of its own.
void use_fft(FftRun run);

}  // namespace groupwise
