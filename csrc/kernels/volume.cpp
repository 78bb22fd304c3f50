#include "kernels/volume.h"

#include <algorithm>
#include <optional>

namespace groupwise {
namespace {

// Groups of a contiguous tensor are computed in blocks whose planes stay in the cache while all taps of the depth are added. A
// block has a whole number of so many channels, which lanes may hold.
constexpr int64_t kLanesMost = 16;

// Returns the largest block that divides the groups and whose tensors, of `floats` a group, fit in the cache.
int64_t groups_together(const Problem& p, int64_t floats) {
  int64_t block = p.groups;
  for (int64_t count = p.groups; count > 0 && block * floats > kScratchFloats; count--)
    if (p.groups % count == 0 && count * std::min(p.in_channels, p.out_channels) % kLanesMost == 0) block = count;
  return block;
}

// Returns the request with so many groups.
Request with_groups(Request r, int64_t groups) {
  Problem& p = r.problem;
  p.groups = groups;
  r.x_strides = meaningful(r.x_strides, p.batch, groups * p.in_channels, p.h.in, p.w.in);
  r.y_strides = meaningful(r.y_strides, p.batch, groups * p.out_channels, p.h.out, p.w.out);
  return r;
}

// The sizes of one plane of x or y, and its strides, for all groups of a block.
struct Plane {
  int64_t channels, h, w;
  Strides strides;
  int64_t floats() const { return channels * h * w; }
};

template <class F>
void each_row(const Plane& p, F&& f) {
  // Channels are the innermost where they are neighbours.
  const bool last = p.strides.c == 1 && p.channels > 1;
  const int64_t outer = last ? p.w : p.channels, inner = last ? p.channels : p.w;
  const int64_t step = last ? p.strides.w : p.strides.c, next = last ? 1 : p.strides.w;
  for (int64_t o = 0; o < outer; o++)
    for (int64_t h = 0; h < p.h; h++) f(o, h, o * step + h * p.strides.h, inner, next, last);
}

// Writes the bias, or zeros, to a plane that no tap reaches.
template <class Real>
void fill(const Plane& p, const Real* bias, Real* to) {
  each_row(p, [&](int64_t o, int64_t, int64_t at, int64_t count, int64_t step, bool last) {
    for (int64_t i = 0; i < count; i++) to[at + i * step] = bias ? bias[last ? i : o] : Real{};
  });
}

// Copies a plane to one of other strides.
template <class Real>
void copy(const Plane& p, const Real* from, const Strides& strides, Real* to) {
  each_row(p, [&](int64_t o, int64_t h, int64_t at, int64_t count, int64_t step, bool last) {
    const Real* row = from + o * (last ? strides.w : strides.c) + h * strides.h;
    const int64_t next = last ? strides.c : strides.w;
    for (int64_t i = 0; i < count; i++) to[at + i * step] = row[i * next];
  });
}

// A forward or a grad_input. Each output plane is the sum over the taps of the depth of a 2-D correlation of one plane: the first
// writes it, and each other adds to what is there as to a residual.
template <class Real>
class PlaneCorrelations : public Work {
 public:
  PlaneCorrelations(const Request& r, int64_t block) : r_(r), forward_(r.direction == Direction::forward), block_(block) {
    phases_ = forward_ ? std::vector<Phase>{forward_phase(r.depth.axis)} : grad_input_phases(r.depth.axis);
  }

  // Returns false if the kernel cannot.
  bool lay_out(const KernelRow& kernel) {
    const Problem& p = r_.problem;
    planes_ = forward_ ? r_.depth.axis.out : r_.depth.axis.in;
    facts.threads = threads_worth(r_);
    Request one = with_groups(plane_of(r_), block_);
    tasks_ = p.batch * (p.groups / block_) * planes_;
    outer_ = facts.threads > 1 && tasks_ >= facts.threads;
    if (!outer_) one.threads = facts.threads;
    out_ = forward_ ? Plane{block_ * p.out_channels, p.h.out, p.w.out, one.y_strides}
                    : Plane{block_ * p.in_channels, p.h.in, p.w.in, one.x_strides};
    const auto make = [&] { work_ = kernel.lay_out(one); };
    make();
    if (!work_) return false;
    onto_ = work_->begins_with_residual();
    compact_ = dense_strides(1, out_.channels, out_.h, out_.w, r_.channels_last);
    direct_ = r_.depth.axis.kernel == 1 || compact_ == out_.strides;
    if (!onto_ && !direct_) {
      (forward_ ? one.y_strides : one.x_strides) = compact_;
      make();
      if (!work_) return false;
    }
    const int64_t threads = facts.threads;
    facts = work_->facts;
    facts.threads = outer_ ? threads : facts.threads;
    facts.tile += ", plane by plane";
    facts.tasks = tasks_;
    int64_t runs = 0;
    for (const Phase& phase : phases_)
      for (int64_t i = 0; i < phase.out; i++) runs += clipped(phase, i, 1).taps;
    facts.products *= runs * p.batch * (p.groups / block_);
    return true;
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Real> t = named<Real>(tensors);
    const int64_t floats = work_->packed_floats(), blocks = r_.problem.groups / block_;
    // Every plane meets the same weights: they are packed once.
    std::unique_ptr<Real[]> packed(floats > 0 ? new Real[floats * blocks * r_.depth.axis.kernel] : nullptr);
    run_tasks(floats > 0 ? blocks * r_.depth.axis.kernel : 0, outer_, parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        work_->pack(reinterpret_cast<float*>(weight(t, i / r_.depth.axis.kernel, i % r_.depth.axis.kernel)),
                    reinterpret_cast<float*>(packed.get() + i * floats), parallel_for);
    });
    run_tasks(tasks_, outer_, parallel_for, [&](int64_t begin, int64_t end) {
      const bool copies = !onto_ && r_.depth.axis.kernel > 1;
      std::unique_ptr<Real[]> sums(copies ? new Real[2 * out_.floats()] : nullptr);
      for (int64_t i = begin; i < end; i++) run_plane(t, i, packed.get(), floats, sums.get(), parallel_for);
    });
  }

 private:
  Real* weight(const TensorsOf<Real>& t, int64_t block, int64_t tap) const {
    return t.w + block * block_ * r_.w_strides.group + tap * r_.depth.w;
  }

  void run_plane(const TensorsOf<Real>& t, int64_t task, const Real* packed, int64_t floats, Real* sums,
                 ParallelFor parallel_for) const {
    const Problem& p = r_.problem;
    const int64_t blocks = p.groups / block_, at = task % planes_, block = task / planes_ % blocks, n = task / planes_ / blocks;
    const auto count = static_cast<int64_t>(phases_.size());
    const Phase taps = clipped(phases_[at % count], at / count, 1);
    const int64_t first = (at / count) * taps.stride + taps.low;
    const Strides &from = forward_ ? r_.x_strides : r_.y_strides, &to = forward_ ? r_.y_strides : r_.x_strides;
    const int64_t channel = block * block_;
    const Real* input = (forward_ ? t.x : t.y) + n * from.n + channel * (forward_ ? p.in_channels : p.out_channels) * from.c;
    const int64_t out_channel = channel * (forward_ ? p.out_channels : p.in_channels);
    Real* output = (forward_ ? t.y : t.x) + n * to.n + out_channel * to.c + at * (forward_ ? r_.depth.y : r_.depth.x);
    const Real* bias = t.bias ? t.bias + out_channel : nullptr;
    if (taps.taps == 0) return fill(out_, bias, output);
    const Real* before = nullptr;
    for (int64_t tap = 0; tap < taps.taps; tap++) {
      const int64_t index = taps.index + tap * taps.index_step, left = taps.taps - 1 - tap;
      // What a kernel adds to after its sums lies elsewhere: two places take turns, of which the last is the output.
      Real* result = onto_ || (direct_ && left % 2 == 0) ? output : sums + left % 2 * out_.floats();
      const EpilogueOf<Real> add{{}, before, {}};
      const Real* plane = input + (first + tap * taps.spacing) * (forward_ ? r_.depth.x : r_.depth.y);
      TensorsOf<Real> one{};
      one.x = forward_ ? const_cast<Real*>(plane) : result;
      one.y = forward_ ? result : const_cast<Real*>(plane);
      one.w = weight(t, block, index);
      one.bias = before ? nullptr : bias;
      one.epilogue = before ? &add : nullptr;
      one.packed = floats > 0 ? packed + (block * r_.depth.axis.kernel + index) * floats : nullptr;
      work_->run(named<float>(one), parallel_for);
      before = result;
    }
    if (before != output) copy(out_, before, compact_, output);
  }

  Request r_;
  bool forward_, outer_ = false, onto_ = false, direct_ = false;
  int64_t block_, planes_ = 0, tasks_ = 0;
  std::vector<Phase> phases_;
  Plane out_{};
  Strides compact_{};
  std::unique_ptr<Work> work_;
};

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
    outer_ = threads > 1 && a.kernel * blocks >= threads;
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

// Returns the 2-D request that is the same sum, if there is one: planes are samples where the depth has one tap, and rows where
// planes have one.
std::optional<Request> flat(const Request& r) {
  const Axis& a = r.depth.axis;
  Request two = r;
  two.dimensions = 2;
  two.depth = {};
  Problem& p = two.problem;
  if (one_to_one(a) || (one_tap(a) && r.direction != Direction::grad_input)) {
    const int64_t x = a.stride * r.depth.x, y = r.depth.y;
    if (p.batch > 1 && (r.x_strides.n != a.out * x || r.y_strides.n != a.out * y)) return std::nullopt;
    p.batch *= a.out;
    if (p.batch > 1 && a.out > 1) two.x_strides.n = x, two.y_strides.n = y;
    return two;
  }
  const auto joined = [&](const Strides& s) { return p.h.in == 1 || s.h == p.w.in * s.w; };
  if (!one_to_one(p.h) || !one_to_one(p.w) || !joined(r.x_strides) || !joined(r.y_strides)) return std::nullopt;
  p.w.in = p.w.out = p.h.in * p.w.in;
  p.h = a;
  two.x_strides.h = r.depth.x;
  two.y_strides.h = r.depth.y;
  two.w_strides.h = r.depth.w;
  return two;
}

template <class Planes>
std::unique_ptr<Work> laid_out(const Request& r, const KernelRow& kernel, int64_t floats) {
  auto work = std::make_unique<Planes>(r, r.channels_last ? r.problem.groups : groups_together(r.problem, floats));
  if (!work->lay_out(kernel)) return nullptr;
  return work;
}

template <class Real>
std::unique_ptr<Work> planes(const Request& r, const KernelRow& kernel, int64_t floats) {
  if (r.direction == Direction::grad_weight) return laid_out<PlaneGradWeights<Real>>(r, kernel, floats);
  return laid_out<PlaneCorrelations<Real>>(r, kernel, floats);
}

std::unique_ptr<Work> lay_out_volume(const KernelRow& kernel, const Request& r, const char** why) {
  const std::optional<Request> two = flat(r);
  *why = kernel.by_norm ? "computes 1-D and 2-D convolutions only" : kernel.refuses(two ? *two : plane_of(r));
  if (*why) return nullptr;
  if (two) return kernel.lay_out(*two);
  const Problem& p = r.problem;
  const Axis& a = r.depth.axis;
  const int64_t x = p.in_channels * p.h.in * p.w.in, y = p.out_channels * p.h.out * p.w.out;
  const int64_t floats = r.direction == Direction::grad_weight ? a.in * x + a.out * y
                         : r.direction == Direction::forward   ? a.kernel * x + y
                                                               : a.kernel * y + x;
  return r.dtype == Dtype::float64 ? planes<double>(r, kernel, 2 * floats) : planes<float>(r, kernel, floats);
}

}  // namespace

Request plane_of(const Request& r) {
  Request one = r;
  one.dimensions = 2;
  one.depth = {};
  one.problem.batch = 1;
  one.threads = 1;
  one.x_strides.n = one.y_strides.n = 0;
  return one;
}

std::unique_ptr<Work> lay_out(const KernelRow& kernel, const Request& r, const char** why) {
  *why = r.dtype == Dtype::float64 && !kernel.float64 ? "computes no float64" : nullptr;
  if (*why) return nullptr;
  if (r.dimensions == 3) return lay_out_volume(kernel, r, why);
  *why = kernel.refuses(r);
  return *why ? nullptr : kernel.lay_out(r);
}

}  // namespace groupwise
