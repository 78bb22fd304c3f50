#include "kernels/table.h"
#include "kernels/channels_layout.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  const int64_t in = forward ? p.in_channels : p.out_channels, out = forward ? p.out_channels : p.in_channels;
  // The names of the weight's strides are those of the forward.
  if (r.x_strides.c != 1 || r.y_strides.c != 1 || (forward ? r.w_strides.c : r.w_strides.o) != 1)
    return "its vectors along the input channels need them side by side in the tensors and the weight (channels_last)";
  if (in % r.target->lanes != 0) return "the input channels of a group do not fill its vectors";
  if (out < 4) return "its tile computes 4 output channels of a group";
  if (!forward && p.w.stride > 1)
    return "it computes outputs whose taps are all alike: a forward, or a gradient of stride 1 along the width";
  return nullptr;
}

std::unique_ptr<Work> dots(const Request& r) {
  const Problem& p = r.problem;
  const int64_t lanes = r.target->lanes;
  auto work = lay_out_correlations<ChannelsLayout>(
      r, r.target->correlate_dots,
      [&](const Correlation& c, int64_t threads, ChannelsLayout* l) {
        return lay_out_dots(c, p.h.kernel, p.w.kernel, lanes, threads, l);
      },
      [](const ChannelsLayout& l) { return l.floats; },
      [&](const Correlation& c, const ChannelsLayout& l) { return executed_products_groups(c, l, lanes, true); });
  if (work)
    work->facts.tile =
        std::to_string(lanes >= 16 ? 4 : 3) + " pixels x 4 output channels x " + std::to_string(lanes) + " input channels";
  return work;
}

}  // namespace

extern const KernelRow kDots;
const KernelRow kDots{"dots",
                      "vectors along the input channels of one group, which are summed at the end, with the weights read in "
                      "place; for wide groups of small channels_last images",
                      {true, true, false},
                      refuses,
                      dots};

}  // namespace groupwise
