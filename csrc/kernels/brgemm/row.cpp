#include <cstring>

#include "kernels/brgemm/layout.h"
#include "kernels/brgemm/product.h"
#include "kernels/table.h"

namespace groupwise {
namespace {

// Tells whether much of this axis' work is with padding, which products of whole blocks do not skip.
bool mostly_padding(Direction direction, const Axis& axis) {
  if (direction != Direction::grad_input) return worth_clipping(forward_phase(axis));
  for (const Phase& s : grad_input_phases(axis))
    if (worth_clipping(s)) return true;
  return false;
}

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  if (std::min(p.in_channels, p.out_channels) < 8) return "its products need 8 input and 8 output channels of a group";
  if (mostly_padding(r.direction, p.h) || mostly_padding(r.direction, p.w))
    return "more than a fifth of its products would be with padding";
  if (const char* problem = product_problem()) return problem;
  if (std::strcmp(product().isa, r.target->isa) != 0)
    return "PyTorch's brgemm chooses its instruction set itself, and it is another one (ONEDNN_MAX_CPU_ISA limits it)";
  return nullptr;
}

// Correlations, each of which packs its weights before its products.
class BrgemmWork : public Work {
 public:
  explicit BrgemmWork(const Request& r)
      : target_(r.target), forward_(r.direction == Direction::forward), threads_(threads_worth(r)) {
    facts.threads = threads_;
  }

  bool add(const Correlation& c) {
    BrgemmLayout l;
    if (!lay_out_brgemm(c, target_->lanes, threads_, &l)) return false;
    facts.products += executed_products(c, l);
    if (parts_.empty() || l.floats > facts.floats) {
      facts.block = l.block;
      facts.tasks = l.tasks(c);
      facts.floats = l.floats;
      const std::string pixels = std::to_string(l.planes ? kProductPixels : kProductRows), channels = std::to_string(l.outputs);
      facts.tile =
          l.planes ? channels + " output channels x " + pixels + " pixels" : pixels + " pixels x " + channels + " channels";
      facts.tile += " by PyTorch's brgemm";
    }
    parts_.emplace_back(c, l);
    return true;
  }

  void run(const Tensors& t, ParallelFor parallel_for) const override {
    for (const auto& [shape, layout] : parts_) {
      Correlation c = shape;
      c.input = forward_ ? t.x : t.y;
      c.output = forward_ ? t.y : t.x;
      c.weight = t.w;
      c.bias = t.bias;
      // The packed weights depend on the weights and the layout alone.
      const std::unique_ptr<float[]> packed(new float[c.groups * layout.weight_floats]);
      if (layout.weight_floats > 0)
        run_tasks(c.groups * ceil_div(c.out_channels, layout.outputs), threads_ > 1, parallel_for,
                  [&](int64_t begin, int64_t end) { target_->pack_brgemm(c, layout, begin, end, packed.get()); });
      run_tasks(layout.tasks(c), threads_ > 1, parallel_for,
                [&](int64_t begin, int64_t end) { target_->correlate_brgemm(c, layout, begin, end, scratch(), packed.get()); });
    }
  }

 private:
  const Kernels* target_;
  bool forward_;
  int64_t threads_;
  std::vector<std::pair<Correlation, BrgemmLayout>> parts_;
};

std::unique_ptr<Work> brgemm(const Request& r) {
  if (r.direction == Direction::grad_weight) {
    const GradWeight work = flattened(grad_weight_of(r));
    BrgemmGradLayout layout;
    if (!lay_out(work, r.target->lanes, threads_worth(r), &layout)) return nullptr;
    auto made = std::make_unique<GradWeightWork<BrgemmGradLayout>>(r, work, r.target->grad_weight_brgemm, layout);
    made->facts.tile = std::to_string(layout.outputs) + " output channels x " +
                       std::to_string(layout.channels * work.problem.w.kernel) + " taps' input channels by PyTorch's brgemm";
    made->facts.products = executed_products(work, layout, r.target->lanes);
    return made;
  }
  auto work = std::make_unique<BrgemmWork>(r);
  for (const Correlation& c : correlations_of(r))
    if (!work->add(flattened(c))) return nullptr;
  return work;
}

}  // namespace

extern const KernelRow kBrgemm;
const KernelRow kBrgemm{"brgemm",
                        "products of small matrices by PyTorch's own micro-kernel, pixels by input channels times input by "
                        "output channels; for wide groups, and dense layers",
                        {true, true, true},
                        refuses,
                        brgemm};

}  // namespace groupwise
