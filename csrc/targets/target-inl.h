// The kernels of one instruction set. The build compiles csrc/kernels/**/correlate.cpp, grad_weight.cpp, finish.cpp, sum.cpp, peak.cpp,
// low/multiply.cpp, converted/rows.cpp and the sweeps of norm/, squeeze/, interleave/ and maxpool/ once for each set, every file by itself, since all in
// one take minutes; a target_*.cpp lists what they define.
#pragma once
#include GW_VECTORS
#include "kernels/kernels.h"

namespace groupwise::GW_TARGET {

void correlate_planar(const Correlation&, const CorrelationLayout&, int64_t begin, int64_t end, float* scratch);
void correlate_channels(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* scratch);
void pack_channels(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* packed);
void correlate_groups(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* scratch);
void pack_gemm(const Correlation&, const GemmLayout&, int64_t begin, int64_t end, float* packed);
void correlate_gemm(const Correlation&, const GemmLayout&, int64_t begin, int64_t end, float* scratch, const float* packed);
void correlate_dots(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* scratch);
void grad_weight_planar(const GradWeight&, const GradWeightLayout&, int64_t begin, int64_t end, float* scratch, float* parts);
void grad_weight_channels(const GradWeight&, const GradWeightChannelsLayout&, int64_t begin, int64_t end, float* scratch,
                          float* parts);
void grad_weight_panels(const GradWeight&, const PanelsLayout&, int64_t begin, int64_t end, float* scratch, float* sums);
void write_panels(const GradWeight&, const PanelsLayout&, int64_t begin, int64_t end, float* sums);
void grad_weight_narrow(const GradWeight&, const GradWeightNarrowLayout&, int64_t begin, int64_t end, float* scratch,
                        float* parts);
void pack_brgemm(const Correlation&, const BrgemmLayout&, int64_t begin, int64_t end, float* packed);
void correlate_brgemm(const Correlation&, const BrgemmLayout&, int64_t begin, int64_t end, float* scratch, const float* packed);
void grad_weight_brgemm(const GradWeight&, const BrgemmGradLayout&, int64_t begin, int64_t end, float* scratch, float* parts);
void pack_stem(const Correlation&, const StemLayout&, int64_t begin, int64_t end, float* packed);
void correlate_stem(const Correlation&, const StemLayout&, int64_t begin, int64_t end, float* scratch, const float* packed);
void finish(const Correlation&, int64_t begin, int64_t end);
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides&, float* sums,
                  int64_t begin, int64_t end);

void norm_moments(const Norm&, int64_t chunk, int64_t piece);
void norm_apply(const Norm&, int64_t chunk, int64_t piece);
void norm_sums(const Norm&, int64_t chunk, int64_t piece);
void norm_grad(const Norm&, int64_t chunk, int64_t piece);

void correlate_low(const LowGrouped&, int64_t begin, int64_t end);
void multiply_low(const LowProduct&, Range pixels, Range blocks);
void grad_weight_low(const LowGradient&, int64_t begin, int64_t end, float* scratch);
void write_low_gradient(const LowGradient&, int64_t begin, int64_t end);
void interleave_rows(const Interleave&, int64_t begin, int64_t end);
void max_pool_rows(const MaxPool&, int64_t begin, int64_t end);
void squeeze_sums(const Squeeze&, int64_t begin, int64_t end);
void squeeze_gate(const Gate&, Range samples, Range rows);
void squeeze_scale(const Squeeze&, int64_t begin, int64_t end);

extern const Conversions kConversions[2];

void multiply_adds(int64_t rounds);

// Vectors of doubles have half of the lanes, but 4 at least.
namespace float64 {
constexpr int kLanes = GW_LANES >= 8 ? GW_LANES / 2 : 4;
void correlate_planar(const CorrelationOf<double>&, const CorrelationLayout&, int64_t begin, int64_t end, double* scratch);
void correlate_channels(const CorrelationOf<double>&, const ChannelsLayout&, int64_t begin, int64_t end, double* scratch);
void pack_channels(const CorrelationOf<double>&, const ChannelsLayout&, int64_t begin, int64_t end, double* packed);
void correlate_groups(const CorrelationOf<double>&, const ChannelsLayout&, int64_t begin, int64_t end, double* scratch);
void pack_gemm(const CorrelationOf<double>&, const GemmLayout&, int64_t begin, int64_t end, double* packed);
void correlate_gemm(const CorrelationOf<double>&, const GemmLayout&, int64_t begin, int64_t end, double* scratch,
                    const double* packed);
void grad_weight_planar(const GradWeightOf<double>&, const GradWeightLayout&, int64_t begin, int64_t end, double* scratch,
                        double* parts);
void grad_weight_channels(const GradWeightOf<double>&, const GradWeightChannelsLayout&, int64_t begin, int64_t end,
                          double* scratch, double* parts);
void grad_weight_panels(const GradWeightOf<double>&, const PanelsLayout&, int64_t begin, int64_t end, double* scratch,
                        double* sums);
void write_panels(const GradWeightOf<double>&, const PanelsLayout&, int64_t begin, int64_t end, double* sums);
void grad_weight_narrow(const GradWeightOf<double>&, const GradWeightNarrowLayout&, int64_t begin, int64_t end, double* scratch,
                        double* parts);
void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const double* tensor, const Strides&, double* sums,
                  int64_t begin, int64_t end);
}  // namespace float64

constexpr Kernels table(const char* isa, int number) {
  return {isa,
          number,
          kLanes,
          {kLanes, correlate_planar, correlate_channels, pack_channels, correlate_groups, pack_gemm, correlate_gemm,
           grad_weight_planar, grad_weight_channels, grad_weight_panels, write_panels, grad_weight_narrow, sum_channels},
          {float64::kLanes, float64::correlate_planar, float64::correlate_channels, float64::pack_channels,
           float64::correlate_groups, float64::pack_gemm, float64::correlate_gemm, float64::grad_weight_planar,
           float64::grad_weight_channels, float64::grad_weight_panels, float64::write_panels, float64::grad_weight_narrow,
           float64::sum_channels},
          correlate_dots,
          pack_brgemm,
          correlate_brgemm,
          grad_weight_brgemm,
          pack_stem,
          correlate_stem,
          finish,
          norm_moments,
          norm_apply,
          norm_sums,
          norm_grad,
          correlate_low,
          multiply_low,
          grad_weight_low,
          write_low_gradient,
          interleave_rows,
          max_pool_rows,
          squeeze_sums,
          squeeze_gate,
          squeeze_scale,
          multiply_adds,
          kConversions};
}

}  // namespace groupwise::GW_TARGET
