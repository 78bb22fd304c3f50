#include "kernels/table.h"
#include "kernels/pixels/layout.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  return (depthwise(p) ? p.groups : p.in_channels) >= 8
             ? nullptr
             : "its vectors along the input channels of a group, or the groups of a depthwise convolution, need 8 of them";
}

// The products that lanes along one side of a weight execute, for each position.
int64_t executed(int64_t along, int64_t others, int64_t lanes) { return round_up(along, lanes) * others; }

// Tells whether a weight's gradient is the same with input and grad_output exchanged.
bool turns(const Problem& p) { return one_tap(p.h) && one_tap(p.w) && p.h.in == p.h.out && p.w.in == p.w.out && !depthwise(p); }

// Returns the sums with the lanes along the output channels instead, where one tap makes both the same and fewer lanes are empty.
GradWeight along_lanes(const GradWeight& work, int64_t lanes) {
  const Problem& p = work.problem;
  const bool fewer = executed(p.out_channels, p.in_channels, lanes) < executed(p.in_channels, p.out_channels, lanes);
  return fewer && turns(p) ? exchanged(work) : work;
}

// Returns them with the lanes along the more channels where as many lanes are empty: vectors copy those to panels in less time.
GradWeight along_more(const GradWeight& work, int64_t lanes) {
  const Problem& p = work.problem;
  const bool same = executed(p.out_channels, p.in_channels, lanes) == executed(p.in_channels, p.out_channels, lanes);
  return same && turns(p) && p.out_channels > p.in_channels ? exchanged(work) : work;
}

// Sums from panels, which all lie in one array before they are written, unless a thread's scratch holds those of its tasks.
template <class Real>
class PanelsWork : public GradWeightWork<PanelsLayout, Real> {
 public:
  PanelsWork(const Request& r, const GradWeightShape& work, const PanelsLayout& layout)
      : GradWeightWork<PanelsLayout, Real>(r, work, r.target->of<Real>().grad_weight_panels, layout),
        write_(r.target->of<Real>().write_panels) {}

 protected:
  void run_parts(const GradWeightOf<Real>& work, ParallelFor parallel_for) const override {
    const PanelsLayout& l = this->layout();
    if (l.inside) return this->run_each(work, parallel_for, nullptr);
    const std::unique_ptr<Real[]> sums(new Real[l.tasks(work.problem) * l.sums_floats()]);
    this->run_each(work, parallel_for, sums.get());
    if (l.parts > 1)
      run_tasks(l.blocks(work.problem), this->facts.threads > 1, parallel_for,
                [&](int64_t begin, int64_t end) { write_(work, l, begin, end, sums.get() + begin * l.sums_floats()); });
  }

 private:
  decltype(Bodies<Real>::write_panels) write_;
};

template <class Real>
std::unique_ptr<Work> pixels_of(const Request& r) {
  const Bodies<Real>& bodies = r.target->of<Real>();
  const std::string lanes = std::to_string(bodies.lanes);
  const std::string tile =
      depthwise(r.problem)
          ? "3 x 4 taps x " + lanes + " channels"
          : (r.target->lanes >= 16 ? "8" : "4") + std::string(" output channels x 3 vectors of ") + lanes + " input channels";
  const GradWeight work = along_lanes(grad_weight_of(r), bodies.lanes);
  const GradWeight panels = with_joined_samples(along_more(work, bodies.lanes));
  PanelsLayout layout;
  if (lay_out(panels, bodies.lanes, threads_worth(r), &layout)) {
    auto made = std::make_unique<PanelsWork<Real>>(r, panels, layout);
    made->facts.tile = tile + (layout.in_place ? ", in place" : ", from panels");
    made->facts.products = executed_products(panels, layout, bodies.lanes);
    return made;
  }
  return lay_out_grad_weight<GradWeightChannelsLayout, Real>(r, work, bodies.grad_weight_channels, tile);
}

std::unique_ptr<Work> pixels(const Request& r) {
  return r.dtype == Dtype::float64 ? pixels_of<double>(r) : pixels_of<float>(r);
}

}  // namespace

extern const KernelRow kPixels;
const KernelRow kPixels{
    "pixels",
    "vectors along the input channels, which are copied pixel by pixel, or read in place in 1x1 layers; for weights' gradients of "
    "depthwise layers and of groups of 8 channels and more",
    {false, false, true},
    refuses,
    pixels,
    Computes::float32_and_64};

}  // namespace groupwise
