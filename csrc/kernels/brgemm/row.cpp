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

std::string tile(const BrgemmLayout& l) {
  const std::string channels = std::to_string(l.outputs);
  return (l.planes ? channels + " output channels x " + std::to_string(kProductPixels) + " pixels"
                   : std::to_string(l.rows) + " pixels x " + channels + " channels") +
         " by PyTorch's brgemm";
}

// Correlations, each of which packs its weights before its products.
class BrgemmWork : public PackedWork<BrgemmLayout> {
 public:
  explicit BrgemmWork(const Request& r)
      : PackedWork(r, r.target->correlate_brgemm, r.target->pack_brgemm), lanes_(r.target->lanes) {}

  bool begins_with_residual() const override {
    for (const auto& [shape, layout] : parts())
      if (layout.staged) return false;
    return true;
  }

  bool add(const Correlation& c) {
    BrgemmLayout l;
    if (!lay_out_brgemm(c, lanes_, facts.threads, &l)) return false;
    if (parts().empty() || l.floats > facts.floats) facts.tile = tile(l);
    Correlations::add(c, l, l.floats, executed_products(c, l));
    return true;
  }

 private:
  int64_t lanes_;
};

std::unique_ptr<Work> brgemm(const Request& r) {
  if (r.direction == Direction::grad_weight) {
    const GradWeight work = with_fewer_turned(with_joined_samples(grad_weight_of(r)));
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
    if (!work->add(with_joined_samples(c))) return nullptr;
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
