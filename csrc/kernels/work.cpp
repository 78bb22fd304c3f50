#include "kernels/work.h"

namespace groupwise {

template <class Real>
void add_parts(const GradWeightOf<Real>& work, const Real* parts, int64_t count) {
  const Problem& p = work.problem;
  const WeightStrides& s = work.weight_strides;
  const int64_t floats = p.groups * p.out_channels * p.in_channels * p.h.kernel * p.w.kernel;
  for (int64_t g = 0; g < p.groups; g++)
    for (int64_t o = 0; o < p.out_channels; o++)
      for (int64_t c = 0; c < p.in_channels; c++)
        for (int64_t kh = 0; kh < p.h.kernel; kh++)
          for (int64_t kw = 0; kw < p.w.kernel; kw++, parts++) {
            Real sum = 0;
            for (int64_t part = 0; part < count; part++) sum += parts[part * floats];
            work.grad_weight[g * s.group + o * s.o + c * s.c + kh * s.h + kw * s.w] = sum;
          }
}

template <class Real>
void add_sums_of_parts(const std::vector<double>& sums, int64_t parts, Real* total) {
  const size_t channels = sums.size() / parts;
  for (size_t c = 0; c < channels; c++) {
    double sum = 0;
    for (size_t at = c; at < sums.size(); at += channels) sum += sums[at];
    total[c] = static_cast<Real>(sum);
  }
}

template void add_parts(const GradWeightOf<float>&, const float*, int64_t);
template void add_parts(const GradWeightOf<double>&, const double*, int64_t);
template void add_sums_of_parts(const std::vector<double>&, int64_t, float*);
template void add_sums_of_parts(const std::vector<double>&, int64_t, double*);

}  // namespace groupwise
