// The kernels of one instruction set. Each runs tasks [begin, end) and has kScratchFloats of scratch of its own.
#pragma once

#include "kernels/brgemm/layout.h"
#include "kernels/channels_layout.h"
#include "kernels/gemm/layout.h"
#include "kernels/narrow/layout.h"
#include "kernels/pixels/layout.h"
#include "kernels/planar/layout.h"
#include "kernels/stem/layout.h"

namespace groupwise {

struct Conversions;
struct Gate;
struct Interleave;
struct LowGradient;
struct LowGrouped;
struct LowProduct;
struct MaxPool;
struct Norm;
struct Squeeze;

// The bodies that are compiled for floats and for doubles.
template <class Real>
struct Bodies {
  int lanes;
  void (*correlate_planar)(const CorrelationOf<Real>&, const CorrelationLayout&, int64_t begin, int64_t end, Real* scratch);
  void (*correlate_channels)(const CorrelationOf<Real>&, const ChannelsLayout&, int64_t begin, int64_t end, Real* scratch);
  void (*pack_channels)(const CorrelationOf<Real>&, const ChannelsLayout&, int64_t begin, int64_t end, Real* packed);
  void (*correlate_groups)(const CorrelationOf<Real>&, const ChannelsLayout&, int64_t begin, int64_t end, Real* scratch);
  void (*pack_gemm)(const CorrelationOf<Real>&, const GemmLayout&, int64_t begin, int64_t end, Real* packed);
  void (*correlate_gemm)(const CorrelationOf<Real>&, const GemmLayout&, int64_t begin, int64_t end, Real* scratch,
                         const Real* packed);
  void (*grad_weight_planar)(const GradWeightOf<Real>&, const GradWeightLayout&, int64_t begin, int64_t end, Real* scratch,
                             Real* parts);
  void (*grad_weight_channels)(const GradWeightOf<Real>&, const GradWeightChannelsLayout&, int64_t begin, int64_t end,
                               Real* scratch, Real* parts);
  void (*grad_weight_panels)(const GradWeightOf<Real>&, const PanelsLayout&, int64_t begin, int64_t end, Real* scratch,
                             Real* sums);
  void (*write_panels)(const GradWeightOf<Real>&, const PanelsLayout&, int64_t begin, int64_t end, Real* sums);
  void (*grad_weight_narrow)(const GradWeightOf<Real>&, const GradWeightNarrowLayout&, int64_t begin, int64_t end,
                             Real* scratch, Real* parts);
  void (*sum_channels)(int64_t batch, int64_t channels, int64_t h, int64_t w, const Real* tensor, const Strides&, Real* sums,
                       int64_t begin, int64_t end);
};

struct Kernels {
  const char* isa;
  int number;  // of the instruction set, below 16
  int lanes;   // of floats
  Bodies<float> float32;
  Bodies<double> float64;
  void (*correlate_dots)(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* scratch);
  void (*pack_brgemm)(const Correlation&, const BrgemmLayout&, int64_t begin, int64_t end, float* packed);
  void (*correlate_brgemm)(const Correlation&, const BrgemmLayout&, int64_t begin, int64_t end, float* scratch,
                           const float* packed);
  void (*grad_weight_brgemm)(const GradWeight&, const BrgemmGradLayout&, int64_t begin, int64_t end, float* scratch,
                             float* parts);
  void (*pack_stem)(const Correlation&, const StemLayout&, int64_t begin, int64_t end, float* packed);
  void (*correlate_stem)(const Correlation&, const StemLayout&, int64_t begin, int64_t end, float* scratch,
                         const float* packed);
  void (*finish)(const Correlation&, int64_t begin, int64_t end);  // samples, by the epilogue alone
  // Each of a chunk of channels and a piece of their values.
  void (*norm_moments)(const Norm&, int64_t chunk, int64_t piece);
  void (*norm_apply)(const Norm&, int64_t chunk, int64_t piece);
  void (*norm_sums)(const Norm&, int64_t chunk, int64_t piece);
  void (*norm_grad)(const Norm&, int64_t chunk, int64_t piece);
  void (*correlate_low)(const LowGrouped&, int64_t begin, int64_t end);
  void (*multiply_low)(const LowProduct&, Range pixels, Range blocks);
  void (*grad_weight_low)(const LowGradient&, int64_t begin, int64_t end, float* scratch);
  void (*write_low_gradient)(const LowGradient&, int64_t begin, int64_t end);  // units
  void (*interleave_rows)(const Interleave&, int64_t begin, int64_t end);
  void (*max_pool_rows)(const MaxPool&, int64_t begin, int64_t end);
  // Sweeps over pieces of samples, and rows of a product.
  void (*squeeze_sums)(const Squeeze&, int64_t begin, int64_t end);
  void (*squeeze_gate)(const Gate&, Range samples, Range rows);
  void (*squeeze_scale)(const Squeeze&, int64_t begin, int64_t end);
  void (*multiply_adds)(int64_t rounds);  // 12 of each lane a round
  const Conversions* conversions;         // of bfloat16, and of float16

  // Returns the bodies for these numbers.
  template <class Real>
  const Bodies<Real>& of() const {
    if constexpr (sizeof(Real) == sizeof(double)) {
      return float64;
    } else {
      return float32;
    }
  }
};

}  // namespace groupwise
