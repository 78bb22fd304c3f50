#include "kernels/stem/layout.h"
#include "kernels/table.h"

namespace groupwise {
namespace {

// The input channels of a group below which the copied planes stay small beside the outputs.
constexpr int64_t kFewInputs = 8;

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  if (p.in_channels >= kFewInputs) return "it is for fewer than 8 input channels of a group";
  if (p.out_channels < 8) return "its vectors along the output channels of a group need 8 of them";
  return nullptr;
}

// A forward correlation, which packs its weights before its products.
class StemWork : public Correlations<StemLayout> {
 public:
  explicit StemWork(const Request& r) : Correlations(r), target_(r.target) {}

 protected:
  void run_part(const Correlation& c, const StemLayout& l, ParallelFor parallel_for) const override {
    std::unique_ptr<float[]> packed;
    if (!c.packed) {
      packed.reset(new float[packed_floats_of(c, l)]);
      pack_part(c, l, packed.get(), parallel_for);
    }
    const float* weight = c.packed ? c.packed : packed.get();
    run_tasks(l.tasks(c), facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { target_->correlate_stem(c, l, begin, end, scratch(), weight); });
  }

  int64_t packed_floats_of(const CorrelationShape& c, const StemLayout& l) const override { return c.groups * l.weight_floats; }

  void pack_part(const Correlation& c, const StemLayout& l, float* packed, ParallelFor parallel_for) const override {
    run_tasks(c.groups, facts.threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { target_->pack_stem(c, l, begin, end, packed); });
  }

 private:
  const Kernels* target_;
};

std::unique_ptr<Work> stem(const Request& r) {
  const int64_t lanes = r.target->lanes;
  auto work = std::make_unique<StemWork>(r);
  const Correlation c = correlations_of(r).front();
  StemLayout l;
  if (!lay_out_stem(c, lanes, work->facts.threads, &l)) return nullptr;
  work->add(c, l, l.floats, executed_products(c, l, lanes));
  const int64_t vectors = std::min<int64_t>(kStemVectors, l.outputs / lanes);
  work->facts.tile = std::to_string(stem_pixels(l.block.columns, stem_pixels_most(lanes, vectors))) + " pixels x " +
                     std::to_string(vectors * lanes) + " channels";
  return work;
}

}  // namespace

extern const KernelRow kStem;
const KernelRow kStem{
    "stem",
    "vectors along the output channels of one group, from input rows that are copied as planes; for fewer than "
    "8 input channels of a group, such as those of an image",
    {true, false, false},
    refuses,
    stem};

}  // namespace groupwise
