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

std::unique_ptr<Work> pixels(const Request& r) {
  const std::string lanes = std::to_string(r.target->lanes);
  return lay_out_grad_weight<GradWeightChannelsLayout>(
      r, r.target->grad_weight_channels,
      depthwise(r.problem)
          ? "3 x 4 taps x " + lanes + " channels"
          : (r.target->lanes >= 16 ? "8" : "4") + std::string(" output channels x 3 vectors of ") + lanes + " input channels");
}

}  // namespace

extern const KernelRow kPixels;
const KernelRow kPixels{
    "pixels",
    "vectors along the input channels, which are copied pixel by pixel; for weights' gradients of depthwise "
    "layers and of groups of 8 channels and more",
    {false, false, true},
    refuses,
    pixels};

}  // namespace groupwise
