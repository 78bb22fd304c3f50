#include <algorithm>

#include "kernels/table.h"
#include "kernels/narrow/layout.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  const int64_t lanes = lanes_of(r), least = std::max<int64_t>(8, lanes);
  const bool in_place = r.x_strides.c == 1 && r.y_strides.c == 1, forward = r.direction != Direction::grad_input;
  const int64_t in = forward ? p.in_channels : p.out_channels, out = forward ? p.out_channels : p.in_channels;
  // Blocks that are copied are written along the width.
  if (r.direction != Direction::grad_weight && depthwise(p) && !in_place && (forward ? r.y_strides.w : r.x_strides.w) != 1)
    return "it writes contiguous tensors, or reads and writes channels_last ones";
  if (r.direction != Direction::grad_weight && depthwise(p))
    return p.groups >= (in_place ? least : 8)
               ? nullptr
               : "its vectors along the channels need 8 of them, or a whole vector in channels_last";
  if (!in_place)
    return "it reads channels_last tensors, and contiguous ones only for outputs and input gradients of depthwise layers";
  if (p.groups * out < least) return "its vectors along the channels need 8 of them, or a whole vector";
  if (!lanes_fit(in, out, lanes))
    return "its vectors hold whole groups side by side, of as many input as output channels or of one, or fill with channels of "
           "one group";
  return nullptr;
}

// Correlations, whose weights are packed by block of channels where the tensors are read in place.
template <class Real>
class NarrowWork : public Correlations<ChannelsLayout, Real> {
 public:
  explicit NarrowWork(const Request& r) : Correlations<ChannelsLayout, Real>(r), bodies_(r.target->of<Real>()) {}

  bool sums_planes() const override {
    return std::none_of(this->parts().begin(), this->parts().end(), [](const auto& part) { return part.second.staged; });
  }

 protected:
  void run_part(const CorrelationOf<Real>& c, const ChannelsLayout& l, ParallelFor parallel_for) const override {
    run_tasks(l.tasks(c), this->facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { bodies_.correlate_channels(c, l, begin, end, scratch_of<Real>()); });
  }

  int64_t packed_floats_of(const CorrelationShape&, const ChannelsLayout& l) const override {
    return l.staged ? 0 : l.blocks * l.weight_floats;
  }

  void pack_part(const CorrelationOf<Real>& c, const ChannelsLayout& l, Real* packed, ParallelFor parallel_for) const override {
    if (l.staged) return;
    run_tasks(l.blocks, this->facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { bodies_.pack_channels(c, l, begin, end, packed); });
  }

 private:
  const Bodies<Real>& bodies_;
};

template <class Real>
std::unique_ptr<Work> narrow_of(const Request& r) {
  const Bodies<Real>& bodies = r.target->of<Real>();
  const std::string lanes = std::to_string(bodies.lanes);
  if (r.direction == Direction::grad_weight) {
    const GradWeight work = grad_weight_of(r);
    const std::string sums = slides_past_rows(work, bodies.lanes) ? "25" : "12";
    return lay_out_grad_weight<GradWeightNarrowLayout, Real>(r, work, bodies.grad_weight_narrow,
                                                             "up to " + sums + " sums x " + lanes + " output channels");
  }
  const Problem& p = r.problem;
  auto work = std::make_unique<NarrowWork<Real>>(r);
  for (const Correlation& c : correlations_of(r)) {
    ChannelsLayout l;
    if (!lay_out_channels(c, p.h.kernel, p.w.kernel, bodies.lanes, work->facts.threads, &l)) return nullptr;
    work->add(c, l, l.floats, executed_products_narrow(c, l, bodies.lanes));
  }
  work->facts.tile = std::to_string(kPixelTile) + " pixels x " + lanes + " channels";
  return work;
}

std::unique_ptr<Work> narrow(const Request& r) {
  return r.dtype == Dtype::float64 ? narrow_of<double>(r) : narrow_of<float>(r);
}

}  // namespace

extern const KernelRow kNarrow;
const KernelRow kNarrow{"narrow",
                        "vectors along the output channels of several groups side by side, read in place from channels_last "
                        "tensors; for depthwise layers and groups of few channels",
                        {true, true, true},
                        refuses,
                        narrow,
                        Computes::float32_and_64};

}  // namespace groupwise
