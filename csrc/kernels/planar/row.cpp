#include "kernels/table.h"
#include "kernels/planar/layout.h"

namespace groupwise {
namespace {

std::string in_place(const Request& r) { return "rows of taps x " + std::to_string(lanes_of(r)) + " columns, in place"; }

std::string tile(const Request& r) {
  const std::string lanes = std::to_string(lanes_of(r));
  const Problem& p = r.problem;
  const bool weight = r.direction == Direction::grad_weight;
  if ((r.direction == Direction::grad_input ? p.in_channels : p.out_channels) >= 4)
    return (weight ? "4 output channels x 3 taps x " : "4 output channels x 3 vectors of ") + lanes + " columns";
  if (weight) return std::string(r.target->lanes >= 16 ? "3 x 7 taps x " : "3 x 4 taps x ") + lanes + " columns";
  return "4 rows x 3 vectors of " + lanes + " columns";
}

std::string tile(const Request& r, const CorrelationShape& c, const CorrelationLayout& l) {
  const std::string lanes = std::to_string(lanes_of(r));
  if (l.whole == Whole::sum) return "4 dot products x " + lanes + " taps";
  if (l.whole == Whole::spread) return lanes + " taps of a kernel";
  const std::string phases = "all phases of the width x " + lanes + " columns";
  if (l.lone_rows) return c.w.size() > 1 ? phases + ", in place" : in_place(r);
  if (l.woven) return phases;
  if (prefers_single(c, c.h) && takes_single(c, c.h, c.w.front(), l.block.rows))
    return std::to_string(kSingleRows) + " rows x " + lanes + " columns";
  return tile(r);
}

const char* refuses(const Request&) { return nullptr; }

template <class Real>
std::unique_ptr<Work> planar_of(const Request& r) {
  const Bodies<Real>& bodies = r.target->of<Real>();
  if (r.direction == Direction::grad_weight) {
    const GradWeight work = grad_weight_of(r);
    return lay_out_grad_weight<GradWeightLayout, Real>(r, work, bodies.grad_weight_planar,
                                                       takes_lone_rows(work, lanes_of(r)) ? in_place(r) : tile(r));
  }
  auto work = lay_out_correlations<CorrelationLayout, Real>(
      r, bodies.correlate_planar,
      [&](const Correlation& c, int64_t threads, CorrelationLayout* l) { return lay_out(c, bodies.lanes, threads, l); },
      [](const CorrelationLayout& l) { return l.input_floats + l.output_floats; },
      [&](const Correlation& c, const CorrelationLayout& l) { return executed_products(c, l, bodies.lanes); });
  if (!work) return nullptr;
  const auto& [c, l] = work->parts().front();
  work->facts.tile = tile(r, c, l);
  return work;
}

std::unique_ptr<Work> planar(const Request& r) {
  return r.dtype == Dtype::float64 ? planar_of<double>(r) : planar_of<float>(r);
}

}  // namespace

extern const KernelRow kPlanar;
const KernelRow kPlanar{"planar",
                        "vectors along the width; an image's rows are copied to zero-padded rows in the cache, so that any "
                        "format, stride and dilation is read alike; those of 1-D depthwise layers are read in place",
                        {true, true, true},
                        refuses,
                        planar,
                        Computes::float32_and_64};

}  // namespace groupwise
