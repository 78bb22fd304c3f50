// What one kernel runs for a request: laid out once, then run with any tensors of its shapes, without a decision.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/layout.h"
#include "products.h"
#include "request.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

// The names are those of the forward convolution. The direction decides which of x, w and y is written. Each is contiguous
// along its width or along its channels, and has any other strides.
template <class Real>
struct TensorsOf {
  Real* x;
  Real* y;
  Real* w;
  const Real* bias;  // for a forward, plain or transposed (which is a grad_input); or null
  // For the same: what follows, or null; and the weight as `Work::pack` leaves it, or null for one that is packed at each run.
  const EpilogueOf<Real>* epilogue = nullptr;
  const Real* packed = nullptr;
  // For a grad_weight that sums it (`Work::sums_grad_output`): the sum of each channel of y, or null.
  Real* grad_bias = nullptr;
  // For works that sum planes (`Work::sums_planes`), with weights that were packed for each: x, or y of a grad_input, is the first.
  Planes planes{};
};

// What a work takes, whose numbers are floats in name only if the request's dtype is another.
using Tensors = TensorsOf<float>;

// Returns tensors by the numbers that they have, or by those of another name.
template <class To, class From>
TensorsOf<To> named(const TensorsOf<From>& t) {
  if constexpr (std::is_same_v<To, From>) {
    return t;
  } else {
    return {reinterpret_cast<To*>(t.x),
            reinterpret_cast<To*>(t.y),
            reinterpret_cast<To*>(t.w),
            reinterpret_cast<const To*>(t.bias),
            reinterpret_cast<const EpilogueOf<To>*>(t.epilogue),
            reinterpret_cast<const To*>(t.packed),
            reinterpret_cast<To*>(t.grad_bias),
            t.planes};
  }
}

// Returns the numbers of a vector of the request's dtype.
inline int64_t lanes_of(const Request& r) { return r.dtype == Dtype::float64 ? r.target->float64.lanes : r.target->lanes; }

// What a plan prints. A grad_input is described by the one of its correlations that needs the most scratch.
struct Facts {
  std::string tile;
  Block block;
  int64_t tasks, floats;  // of scratch, a thread
  int64_t products;       // multiply-accumulates that are executed, on padding and in empty lanes too
  int64_t threads;        // that share the tasks
};

class Work {
 public:
  virtual ~Work() = default;
  virtual void run(const Tensors& tensors, ParallelFor parallel_for) const = 0;
  // Packs a constant weight once for all runs: returns how many numbers that takes, 0 where it would save nothing, and fills
  // them.
  virtual int64_t packed_floats() const { return 0; }
  virtual void pack(const float*, float*, ParallelFor) const {}
  // Tells whether the sums begin with a residual that no activation precedes, so that it may be the output itself.
  virtual bool begins_with_residual() const { return false; }
  // Tells whether a run sums several planes of a volume.
  virtual bool sums_planes() const { return false; }
  // Tells whether a grad_weight sums the channels of y in the pass over them.
  virtual bool sums_grad_output() const { return false; }
  Facts facts{};
};

// Correlations, each with its layout: a forward, or the phases of a grad_input.
template <class Layout, class Real = float>
class Correlations : public Work {
 public:
  explicit Correlations(const Request& r) : forward_(r.direction == Direction::forward) { facts.threads = threads_worth(r); }

  const std::vector<std::pair<CorrelationShape, Layout>>& parts() const { return parts_; }

  void add(const CorrelationShape& c, const Layout& layout, int64_t floats, int64_t products) {
    facts.products += products;
    if (parts_.empty() || floats > facts.floats) {
      facts.block = layout.block;
      facts.tasks = layout.tasks(c);
      facts.floats = floats;
    }
    parts_.emplace_back(c, layout);
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Real> t = named<Real>(tensors);
    int64_t packed = 0;
    for (const auto& [shape, layout] : parts_) {
      CorrelationOf<Real> c{shape, {}, {}, {}, {}, {}, {}, {}};
      c.input = forward_ ? t.x : t.y;
      c.output = forward_ ? t.y : t.x;
      c.weight = t.w;
      c.bias = t.bias;
      c.epilogue = t.epilogue;
      c.packed = t.packed ? t.packed + packed : nullptr;
      c.planes = t.planes;
      packed += packed_floats_of(c, layout);
      run_part(c, layout, parallel_for);
    }
  }

  int64_t packed_floats() const override {
    int64_t floats = 0;
    for (const auto& [shape, layout] : parts_) floats += packed_floats_of(shape, layout);
    return floats;
  }

  void pack(const float* weight, float* to, ParallelFor parallel_for) const override {
    Real* packed = reinterpret_cast<Real*>(to);
    for (const auto& [shape, layout] : parts_) {
      CorrelationOf<Real> c{shape, {}, {}, {}, {}, {}, {}, {}};
      c.weight = reinterpret_cast<const Real*>(weight);
      pack_part(c, layout, packed, parallel_for);
      packed += packed_floats_of(c, layout);
    }
  }

 protected:
  virtual int64_t packed_floats_of(const CorrelationShape&, const Layout&) const { return 0; }
  virtual void pack_part(const CorrelationOf<Real>&, const Layout&, Real*, ParallelFor) const {}
  virtual void run_part(const CorrelationOf<Real>& c, const Layout& layout, ParallelFor parallel_for) const = 0;

 private:
  bool forward_;
  std::vector<std::pair<CorrelationShape, Layout>> parts_;
};

// Correlations by a kernel that needs its tensors alone.
template <class Layout, class Real = float>
class CorrelationWork : public Correlations<Layout, Real> {
 public:
  using Run = void (*)(const CorrelationOf<Real>&, const Layout&, int64_t begin, int64_t end, Real* scratch);

  CorrelationWork(const Request& r, Run run) : Correlations<Layout, Real>(r), run_(run) {}

 protected:
  void run_part(const CorrelationOf<Real>& c, const Layout& layout, ParallelFor parallel_for) const override {
    run_tasks(layout.tasks(c), this->facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { run_(c, layout, begin, end, scratch_of<Real>()); });
  }

 private:
  Run run_;
};

// Correlations by a kernel that packs the weights before its products, unless they were packed for all runs. Its layout has tasks that
// pack, and the numbers of a group's packed weights: none where they are read in place.
template <class Layout, class Real = float>
class PackedWork : public Correlations<Layout, Real> {
 public:
  using Run = void (*)(const CorrelationOf<Real>&, const Layout&, int64_t begin, int64_t end, Real* scratch,
                       const Real* packed);
  using Pack = void (*)(const CorrelationOf<Real>&, const Layout&, int64_t begin, int64_t end, Real* packed);

  PackedWork(const Request& r, Run run, Pack pack) : Correlations<Layout, Real>(r), run_(run), pack_(pack) {}

 protected:
  void run_part(const CorrelationOf<Real>& c, const Layout& l, ParallelFor parallel_for) const override {
    std::unique_ptr<Real[]> packed;
    if (!c.packed) {
      packed.reset(new Real[packed_floats_of(c, l)]);
      pack_part(c, l, packed.get(), parallel_for);
    }
    const Real* weight = c.packed ? c.packed : packed.get();
    run_tasks(l.tasks(c), this->facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { run_(c, l, begin, end, scratch_of<Real>(), weight); });
  }

  // The packed weights depend on the weights and the layout alone.
  int64_t packed_floats_of(const CorrelationShape& c, const Layout& l) const override { return c.groups * l.weight_floats; }

  void pack_part(const CorrelationOf<Real>& c, const Layout& l, Real* packed, ParallelFor parallel_for) const override {
    if (l.weight_floats == 0) return;
    run_tasks(l.pack_tasks(c), this->facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { pack_(c, l, begin, end, packed); });
  }

 private:
  Run run_;
  Pack pack_;
};

// Sums the parts of a weight's gradient in their order, so that the result has the same bits on every run.
template <class Real>
void add_parts(const GradWeightOf<Real>& work, const Real* parts, int64_t count);
// The same for the sums of grad_output.
template <class Real>
void add_sums_of_parts(const std::vector<double>& sums, int64_t parts, Real* total);

// A weight's gradient and its layout.
template <class Layout, class Real = float>
class GradWeightWork : public Work {
 public:
  using Run = void (*)(const GradWeightOf<Real>&, const Layout&, int64_t begin, int64_t end, Real* scratch, Real* parts);

  GradWeightWork(const Request& r, const GradWeightShape& work, Run run, const Layout& layout)
      : run_(run), work_(work), layout_(layout) {
    facts.threads = threads_worth(r);
    facts.block = layout.block;
    facts.tasks = layout.tasks(work.problem);
    facts.floats = layout.floats;
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Real> t = named<Real>(tensors);
    GradWeightOf<Real> work{work_, {}, {}, {}};
    work.input = work.exchanged ? t.y : t.x;
    work.grad_output = work.exchanged ? t.x : t.y;
    work.grad_weight = t.w;
    const Problem& p = work.problem;
    std::vector<double> sums(t.grad_bias ? layout_.parts * p.groups * p.out_channels : 0);
    if (t.grad_bias) work.sums = sums.data();
    run_parts(work, parallel_for);
    if (t.grad_bias) add_sums_of_parts(sums, layout_.parts, t.grad_bias);
  }

  bool sums_grad_output() const override { return !work_.exchanged; }

 protected:
  const Layout& layout() const { return layout_; }

  virtual void run_parts(const GradWeightOf<Real>& work, ParallelFor parallel_for) const {
    const Problem& p = work.problem;
    const int64_t floats = p.groups * p.out_channels * p.in_channels * p.h.kernel * p.w.kernel;
    std::vector<Real> parts(layout_.parts > 1 ? layout_.parts * floats : 0);
    run_each(work, parallel_for, parts.data());
    if (layout_.parts > 1) add_parts(work, parts.data(), layout_.parts);
  }

  void run_each(const GradWeightOf<Real>& work, ParallelFor parallel_for, Real* parts) const {
    run_tasks(layout_.tasks(work.problem), facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { run_(work, layout_, begin, end, scratch_of<Real>(), parts); });
  }

 private:
  Run run_;
  GradWeightShape work_;
  Layout layout_;
};

// Lays out each correlation of a request by lay_out(correlation, threads, &layout), which returns whether its smallest block
// fits the scratch, `floats` returns how much of it a layout takes, and `products` how many it executes. Null if one does not
// fit.
template <class Layout, class Real = float, class LayOut, class Floats, class Products>
std::unique_ptr<CorrelationWork<Layout, Real>> lay_out_correlations(const Request& r,
                                                                    typename CorrelationWork<Layout, Real>::Run run,
                                                                    LayOut&& lay_out, Floats&& floats, Products&& products) {
  auto work = std::make_unique<CorrelationWork<Layout, Real>>(r, run);
  for (const Correlation& c : correlations_of(r)) {
    Layout layout;
    if (!lay_out(c, work->facts.threads, &layout)) return nullptr;
    work->add(c, layout, floats(layout), products(c, layout));
  }
  return work;
}

template <class Layout, class Real = float>
std::unique_ptr<Work> lay_out_grad_weight(const Request& r, const GradWeightShape& work,
                                          typename GradWeightWork<Layout, Real>::Run run, std::string tile) {
  Layout layout;
  if (!lay_out(work, lanes_of(r), threads_worth(r), &layout)) return nullptr;
  auto made = std::make_unique<GradWeightWork<Layout, Real>>(r, work, run, layout);
  made->facts.tile = std::move(tile);
  made->facts.products = executed_products(work, layout, lanes_of(r));
  return made;
}

}  // namespace groupwise
