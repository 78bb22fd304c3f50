// A 3-D gradient of the weight by the kernels of 2-D ones.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/table.h"
#include "kernels/volume/plane.h"

namespace groupwise {

// The gradient of the weight: that of each tap of the depth is a 2-D one over the planes that it reads.
template <class Real>
class PlaneGradWeights : public Work {
 public:
  PlaneGradWeights(const Request& r, int64_t block) : r_(r), block_(block) {}

  bool lay_out(const KernelRow& kernel) {
    const Axis& a = r_.depth.axis;
    const int64_t blocks = r_.problem.groups / block_;
    const int64_t threads = threads_worth(r_);
    facts.threads = threads;
    outer_ = threads > 1 && !uneven(a.kernel * blocks, threads);
    int64_t products = 0;
    for (int64_t tap = 0; tap < a.kernel; tap++) {
      const Range there = outputs_inside(tap * a.dilation - a.pad, 0, a.stride, a.out, a.in);
      const int64_t planes = there.last - there.first;
      ranges_.push_back(there);
      const auto same = std::find_if(ranges_.begin(), ranges_.end() - 1,
                                     [&](const Range& other) { return other.last - other.first == planes; });
      std::shared_ptr<const Work> work;
      if (same != ranges_.end() - 1) {
        work = works_[same - ranges_.begin()];
      } else if (planes > 0) {
        work = kernel.lay_out(request_of(planes, outer_ ? 1 : threads));
        if (!work) return false;
      }
      works_.push_back(work);
      if (!work) continue;
      products += work->facts.products * blocks * r_.problem.batch;
      if (work->facts.floats >= facts.floats) facts = work->facts;
    }
    if (outer_) facts.threads = threads;
    facts.tile += ", tap by tap of the depth";
    facts.tasks = a.kernel * blocks;
    facts.products = products;
    return true;
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Real> t = named<Real>(tensors);
    const Problem& p = r_.problem;
    const int64_t blocks = p.groups / block_;
    run_tasks(r_.depth.axis.kernel * blocks, outer_, parallel_for, [&](int64_t begin, int64_t end) {
      const int64_t floats = block_ * p.in_channels * p.out_channels * p.h.kernel * p.w.kernel;
      std::unique_ptr<Real[]> sums(p.batch > 1 ? new Real[floats] : nullptr);
      for (int64_t i = begin; i < end; i++)
        run_tap(t, i % r_.depth.axis.kernel, i / r_.depth.axis.kernel, sums.get(), parallel_for);
    });
  }

 private:
  Request request_of(int64_t planes, int64_t threads) const {
    Request one = plane_of(r_);
    one.problem.batch = planes;
    one.threads = threads;
    one.x_strides.n = planes > 1 ? r_.depth.axis.stride * r_.depth.x : 0;
    one.y_strides.n = planes > 1 ? r_.depth.y : 0;
    one = with_groups(one, block_);
    if (r_.problem.batch > 1) one.w_strides = dense_weight_strides(one.problem, false);
    return one;
  }

  // Calls f(weight of the gradient, its place among those of the block in order).
  template <class F>
  void each_weight(Real* to, F&& f) const {
    const Problem& p = r_.problem;
    const WeightStrides& s = r_.w_strides;
    int64_t i = 0;
    for (int64_t o = 0; o < block_ * p.out_channels; o++)
      for (int64_t c = 0; c < p.in_channels; c++)
        for (int64_t h = 0; h < p.h.kernel; h++)
          for (int64_t w = 0; w < p.w.kernel; w++) f(to[begin_of(s, p.out_channels, o) + c * s.c + h * s.h + w * s.w], i++);
  }

  void run_tap(const TensorsOf<Real>& t, int64_t tap, int64_t block, Real* sums, ParallelFor parallel_for) const {
    const Problem& p = r_.problem;
    const int64_t channel = block * block_;
    Real* to = t.w + channel * r_.w_strides.group + tap * r_.depth.w;
    if (!works_[tap]) return each_weight(to, [](Real& weight, int64_t) { weight = 0; });
    const Axis& a = r_.depth.axis;
    const int64_t first = ranges_[tap].first, from = first * a.stride + tap * a.dilation - a.pad;
    for (int64_t n = 0; n < p.batch; n++) {
      TensorsOf<Real> one{};
      one.x = t.x + n * r_.x_strides.n + channel * p.in_channels * r_.x_strides.c + from * r_.depth.x;
      one.y = t.y + n * r_.y_strides.n + channel * p.out_channels * r_.y_strides.c + first * r_.depth.y;
      one.w = sums ? sums : to;
      works_[tap]->run(named<float>(one), parallel_for);
      if (sums) each_weight(to, [&](Real& weight, int64_t i) { weight = n > 0 ? weight + sums[i] : sums[i]; });
    }
  }

  Request r_;
  int64_t block_;
  bool outer_ = false;
  std::vector<Range> ranges_;
  std::vector<std::shared_ptr<const Work>> works_;  // of each tap; null for one that reads no plane
};

}  // namespace groupwise
