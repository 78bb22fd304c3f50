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

std::unique_ptr<Work> stem(const Request& r) {
  const int64_t lanes = r.target->lanes;
  auto work = std::make_unique<PackedWork<StemLayout>>(r, r.target->correlate_stem, r.target->pack_stem);
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
