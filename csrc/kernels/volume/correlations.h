// A 3-D forward or grad_input by the kernels of 2-D ones.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/table.h"
#include "kernels/volume/plane.h"
#include "kernels/volume/plane_bands.h"

namespace groupwise {

// A forward or a grad_input. Each output plane is the sum over the taps of the depth of a 2-D correlation of one plane. A kernel sums
// them all in one run where it can (`Work::sums_planes`); else the first writes the plane, and each other adds to what is there as to
// a residual. Bands of its rows are computed one by one.
template <class Real>
class PlaneCorrelations : public Work {
 public:
  PlaneCorrelations(const Request& r, int64_t block) : r_(r), forward_(r.direction == Direction::forward), block_(block) {
    phases_ = forward_ ? std::vector<Phase>{forward_phase(r.depth.axis)} : grad_input_phases(r.depth.axis);
    constexpr int64_t kFloatsEach = sizeof(Real) / sizeof(float);
    bands_ = bands_of(r, kFloatsEach);
    const int64_t planes = std::max(r.depth.axis.in, r.depth.axis.out);
    ahead_ = beyond_cache(planes * numbers_of(r.problem) * kFloatsEach, kScratchFloats);
  }

  // Returns false if the kernel cannot.
  bool lay_out(const KernelRow& kernel) {
    if (lay_out_bands(kernel)) return true;
    // The kernel may compute whole planes.
    bands_.assign(1, {0, 0, r_.problem.h});
    parts_.clear();
    packed_ = sums_ = 0;
    facts = {};
    return lay_out_bands(kernel);
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Real> t = named<Real>(tensors);
    const int64_t taps = r_.depth.axis.kernel, weights = r_.problem.groups / block_ * taps;
    // Every plane meets the same weights: they are packed once for each of the bands' problems.
    std::unique_ptr<Real[]> packed(packed_ > 0 ? new Real[packed_ * weights] : nullptr);
    for (const Part& part : parts_) {
      const int64_t floats = part.first ? part.work->packed_floats() : 0;
      run_tasks(floats > 0 ? weights : 0, outer_, parallel_for, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          part.work->pack(reinterpret_cast<float*>(weight(t, i / taps, i % taps)),
                          reinterpret_cast<float*>(packed.get() + part.packed * weights + i * floats), parallel_for);
      });
    }
    run_tasks(tasks_, outer_, parallel_for, [&](int64_t begin, int64_t end) {
      std::unique_ptr<Real[]> sums(sums_ > 0 && taps > 1 ? new Real[2 * sums_] : nullptr);
      for (int64_t i = begin; i < end; i++) run_band(t, i, packed.get(), sums.get(), parallel_for);
    });
  }

 private:
  // What computes a band. Bands of equal problems share it.
  struct Part {
    std::shared_ptr<Work> work;
    OutputPlane out;
    Strides compact;
    int64_t packed;     // its packed weights, for each weight, lie behind so many others
    bool first = true;  // of those that share it
    bool whole = false, onto = false, direct = false;
  };

  bool lay_out_bands(const KernelRow& kernel) {
    const Problem& p = r_.problem;
    planes_ = forward_ ? r_.depth.axis.out : r_.depth.axis.in;
    const int64_t threads = threads_worth(r_);
    tasks_ = p.batch * (p.groups / block_) * planes_ * static_cast<int64_t>(bands_.size());
    outer_ = threads > 1 && tasks_ >= threads;
    int64_t products = 0;
    for (const Band& band : bands_) {
      const auto same = std::find_if(bands_.begin(), bands_.end(), [&](const Band& other) { return other.axis == band.axis; });
      const auto known = static_cast<size_t>(same - bands_.begin());
      if (known == parts_.size()) {
        parts_.emplace_back();
        if (!lay_out_part(kernel, band.axis, outer_ ? 1 : threads, &parts_.back())) return false;
      } else {
        parts_.push_back(parts_[known]);
        parts_.back().first = false;
      }
      products += parts_.back().work->facts.products;
      if (parts_.back().work->facts.floats >= facts.floats) facts = parts_.back().work->facts;
    }
    if (outer_) facts.threads = threads;
    facts.tile += bands_.size() > 1 ? ", band by band of planes" : ", plane by plane";
    facts.tasks = tasks_;
    int64_t runs = 0;
    for (const Phase& phase : phases_)
      for (int64_t i = 0; i < phase.out; i++) runs += clipped(phase, i, 1).taps;
    facts.products = products * runs * p.batch * (p.groups / block_);
    return true;
  }

  bool lay_out_part(const KernelRow& kernel, const Axis& rows, int64_t threads, Part* part) {
    Request one = plane_of(r_);
    one.threads = threads;
    one.problem.h = rows;
    one = with_groups(one, block_);
    if (kernel.refuses(one)) return false;
    const Problem& p = one.problem;
    part->out = forward_ ? OutputPlane{block_ * p.out_channels, p.h.out, p.w.out, one.y_strides}
                         : OutputPlane{block_ * p.in_channels, p.h.in, p.w.in, one.x_strides};
    part->work = kernel.lay_out(one);
    if (!part->work) return false;
    part->whole = part->work->sums_planes();
    part->onto = part->whole || part->work->begins_with_residual();
    part->compact = dense_strides(1, part->out.channels, part->out.h, part->out.w, r_.channels_last);
    part->direct = r_.depth.axis.kernel == 1 || part->compact == part->out.strides;
    if (!part->onto && !part->direct) {
      (forward_ ? one.y_strides : one.x_strides) = part->compact;
      part->work = kernel.lay_out(one);
      if (!part->work) return false;
    }
    part->packed = packed_;
    packed_ += part->work->packed_floats();
    if (!part->onto) sums_ = std::max(sums_, part->out.floats());
    return true;
  }

  Real* weight(const TensorsOf<Real>& t, int64_t block, int64_t tap) const {
    return t.w + block * block_ * r_.w_strides.group + tap * r_.depth.w;
  }

  // Return how far apart planes of what is read lie, and of what is written.
  int64_t read_step() const { return forward_ ? r_.depth.x : r_.depth.y; }
  int64_t written_step() const { return forward_ ? r_.depth.y : r_.depth.x; }

  // Returns the taps of the depth and, if there is one, the plane that an output plane reads last.
  std::pair<Phase, int64_t> taps_of(int64_t at) const {
    const auto count = static_cast<int64_t>(phases_.size());
    const Phase taps = clipped(phases_[at % count], at / count, 1);
    return {taps, at / count * taps.stride + taps.low + (taps.taps - 1) * taps.spacing};
  }

  // Returns what a run sums of output plane `at`, and what it prefetches for the next.
  Planes planes_of(const Phase& taps, int64_t last, int64_t at, int64_t weights) const {
    Planes planes{taps.taps, taps.spacing * read_step(), weights};
    planes.ahead = ahead_ && at + 1 < planes_;
    if (!planes.ahead) return planes;
    const auto [next, next_last] = taps_of(at + 1);
    const int64_t further = next.taps > 0 ? next_last - last : 0;
    planes.y = written_step();
    planes.fresh = std::max<int64_t>(0, std::min(further, next.taps));
    planes.next = (taps.taps - 1) * planes.x + further * read_step();
    return planes;
  }

  void run_band(const TensorsOf<Real>& t, int64_t task, const Real* packed, Real* sums, ParallelFor parallel_for) const {
    const Problem& p = r_.problem;
    // A plane finds most of what it reads where the plane before it read it.
    const int64_t at = task % planes_, blocks = p.groups / block_, bands = static_cast<int64_t>(bands_.size());
    const int64_t number = task / planes_ % bands, block = task / planes_ / bands % blocks, n = task / planes_ / bands / blocks;
    const Band& band = bands_[number];
    const Part& part = parts_[number];
    const auto [taps, last] = taps_of(at);
    const int64_t first = last - (taps.taps - 1) * taps.spacing;
    const Strides &from = forward_ ? r_.x_strides : r_.y_strides, &to = forward_ ? r_.y_strides : r_.x_strides;
    const int64_t channel = block * block_;
    const Real* input = (forward_ ? t.x : t.y) + n * from.n + channel * (forward_ ? p.in_channels : p.out_channels) * from.c +
                        band.from * from.h;
    const int64_t out_channel = channel * (forward_ ? p.out_channels : p.in_channels);
    Real* output = (forward_ ? t.y : t.x) + n * to.n + out_channel * to.c + band.first * to.h + at * written_step();
    const Real* bias = t.bias ? t.bias + out_channel : nullptr;
    if (taps.taps == 0) return fill_plane(part.out, bias, output);
    const int64_t floats = part.work->packed_floats(), weights = blocks * r_.depth.axis.kernel;
    const Real* before = nullptr;
    for (int64_t tap = 0; tap < taps.taps; tap += part.whole ? taps.taps : 1) {
      const int64_t index = taps.index + tap * taps.index_step, left = taps.taps - 1 - tap;
      // What a kernel adds to after its sums lies elsewhere: two places take turns, of which the last is the output.
      Real* result = part.onto || (part.direct && left % 2 == 0) ? output : sums + left % 2 * sums_;
      const EpilogueOf<Real> add{{}, before, {}};
      const Real* plane = input + (first + tap * taps.spacing) * read_step();
      TensorsOf<Real> one{};
      one.x = forward_ ? const_cast<Real*>(plane) : result;
      one.y = forward_ ? result : const_cast<Real*>(plane);
      one.w = weight(t, block, index);
      one.bias = before ? nullptr : bias;
      one.epilogue = before ? &add : nullptr;
      one.packed = floats > 0 ? packed + part.packed * weights + (block * r_.depth.axis.kernel + index) * floats : nullptr;
      if (part.whole) one.planes = planes_of(taps, last, at, taps.index_step * floats);
      part.work->run(named<float>(one), parallel_for);
      before = result;
    }
    if (before != output) copy_plane(part.out, before, part.compact, output);
  }

  Request r_;
  bool forward_, outer_ = false;
  bool ahead_;  // planes are prefetched: more are read and written than the L2 cache holds
  int64_t block_, planes_ = 0, tasks_ = 0;
  int64_t packed_ = 0, sums_ = 0;  // of all parts for one weight, and of the largest part that needs a place for its sums
  std::vector<Phase> phases_;
  std::vector<Band> bands_;
  std::vector<Part> parts_;  // of each band
};

}  // namespace groupwise
