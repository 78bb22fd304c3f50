#include "kernels/pairs/gradient.h"

#include "kernels/kernels.h"
#include "kernels/low/gradient.h"
#include "products.h"

namespace groupwise {
namespace {

class PairsGradient : public Work {
 public:
  explicit PairsGradient(const Request& r) : target_(r.target) {
    gradient_.x_strides = r.x_strides;
    gradient_.y_strides = r.y_strides;
    gradient_.w_strides = r.w_strides;
    facts.threads = threads_worth(r);
  }

  bool lay_out(const Problem& p) {
    LowGradient& g = gradient_;
    if (!groupwise::lay_out(p, target_->lanes, facts.threads, &g)) return false;
    const std::string outputs = std::to_string(g.lanes) + (g.shared ? " channels" : " output channels");
    facts.tile = (g.shared ? "taps x " + outputs : "input channels x vectors of " + outputs) + ", by pairs of positions";
    facts.block = {g.rows, g.columns, g.shared ? g.outputs / p.out_channels : 1};
    facts.tasks = g.tasks();
    facts.floats = g.numbers() / 2;
    facts.products = executed_products(g);
    return true;
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Bfloat16> t = named<Bfloat16>(tensors);
    LowGradient g = gradient_;
    g.x = t.x;
    g.y = t.y;
    g.w = t.w;
    const std::unique_ptr<float[]> sums(new float[g.tasks() * g.sums_of_unit()]);
    g.sums = sums.get();
    const bool threaded = facts.threads > 1;
    run_tasks(g.tasks(), threaded, parallel_for,
              [&](int64_t begin, int64_t end) { target_->grad_weight_low(g, begin, end, scratch()); });
    run_tasks(g.units(), threaded, parallel_for,
              [&](int64_t begin, int64_t end) { target_->write_low_gradient(g, begin, end); });
  }

 private:
  const Kernels* target_;
  LowGradient gradient_{};
};

}  // namespace

std::unique_ptr<Work> pairs_gradient(const Request& r) {
  auto work = std::make_unique<PairsGradient>(r);
  return work->lay_out(r.problem) ? std::move(work) : nullptr;
}

}  // namespace groupwise
