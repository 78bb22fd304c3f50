#include <algorithm>

#include "kernels/gemm/layout.h"
#include "kernels/table.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  if (!one_tap(p.h) || !one_tap(p.w)) return "it computes layers of one tap without padding";
  // With dilation an output padding, too, makes inputs that no output reads.
  if (r.direction == Direction::grad_input && !(one_to_one(p.h) && one_to_one(p.w)))
    return "it computes gradients of inputs that are all read (stride 1, no output padding)";
  if (std::min(p.in_channels, p.out_channels) < 8) return "its products need 8 input and 8 output channels of a group";
  if (r.x_strides.c != 1 || r.y_strides.c != 1) return "its pixels have their channels side by side (channels_last)";
  return nullptr;
}

template <class Real>
class GemmWork : public PackedWork<GemmLayout, Real> {
 public:
  explicit GemmWork(const Request& r)
      : PackedWork<GemmLayout, Real>(r, r.target->of<Real>().correlate_gemm, r.target->of<Real>().pack_gemm) {
    const int64_t lanes = r.target->of<Real>().lanes;
    const Correlation c = with_joined_samples(correlations_of(r).front());
    GemmLayout l;
    lay_out_gemm(c, lanes, this->facts.threads, &l);
    this->add(c, l, 0, executed_products(c, l));
    const int64_t vectors = l.panel(c, 0, 0).vectors;
    this->facts.tile = std::to_string(std::min<int64_t>(gemm_pixels(lanes, vectors), l.pixels)) + " pixels x " +
                       std::to_string(vectors * lanes) + " channels";
  }

  bool begins_with_residual() const override { return true; }
};

std::unique_ptr<Work> gemm(const Request& r) {
  if (r.dtype == Dtype::float64) return std::make_unique<GemmWork<double>>(r);
  return std::make_unique<GemmWork<float>>(r);
}

}  // namespace

extern const KernelRow kGemm;
const KernelRow kGemm{
    "gemm",
    "products of matrices by a micro-kernel of its own, pixels by input channels times packed panels of input "
    "by output channels; for 1x1 layers of channels_last tensors, dense or in wide groups",
    {true, true, false},
    refuses,
    gemm,
    Computes::float32_and_64};

}  // namespace groupwise
