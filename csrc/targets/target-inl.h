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
void correlate_dots(const Correlation&, const ChannelsLayout&, int64_t begin, int64_t end, float* scratch);
void grad_weight_planar(const GradWeight&, const GradWeightLayout&, int64_t begin, int64_t end, float* scratch, float* parts);
void grad_weight_channels(const GradWeight&, const GradWeightChannelsLayout&, int64_t begin, int64_t end, float* scratch,
                          float* parts);
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
void interleave_rows(const Interleave&, int64_t begin, int64_t end);
void max_pool_rows(const MaxPool&, int64_t begin, int64_t end);
void squeeze_sums(const Squeeze&, int64_t begin, int64_t end);
void squeeze_gate(const Gate&, Range samples, Range rows);
void squeeze_scale(const Squeeze&, int64_t begin, int64_t end);

extern const Conversions kConversions[2];

void multiply_adds(int64_t rounds);

constexpr Kernels table(const char* isa, int number) {
  return {isa,
          number,
          kLanes,
          correlate_planar,
          correlate_channels,
          correlate_groups,
          correlate_dots,
          grad_weight_planar,
          grad_weight_channels,
          grad_weight_narrow,
          pack_brgemm,
          correlate_brgemm,
          grad_weight_brgemm,
          pack_stem,
          correlate_stem,
          finish,
          sum_channels,
          norm_moments,
          norm_apply,
          norm_sums,
          norm_grad,
          correlate_low,
          multiply_low,
          interleave_rows,
          max_pool_rows,
          squeeze_sums,
          squeeze_gate,
          squeeze_scale,
          multiply_adds,
          pack_channels,
          kConversions};
}

}  // namespace groupwise::GW_TARGET
