#include "kernels/table.h"
#include "kernels/channels_layout.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  const int64_t out = forward ? p.out_channels : p.in_channels;
  // In short rows planar leaves more lanes empty (a 7x7 image of stride 2, 6 channels: three times slower).
  const int64_t columns = forward ? p.w.out : ceil_div(p.w.in, p.w.stride);
  return out >= (columns > 8 ? 8 : 4)
             ? nullptr
             : "its vectors along the output channels of a group (of its gradient, the input channels) need 8 of them, or 4 "
               "where a row has at most 8 outputs";
}

template <class Real>
std::unique_ptr<Work> groups_of(const Request& r) {
  const Problem& p = r.problem;
  const Bodies<Real>& bodies = r.target->of<Real>();
  const int64_t lanes = bodies.lanes;
  auto work = lay_out_correlations<ChannelsLayout, Real>(
      r, bodies.correlate_groups,
      [&](const Correlation& c, int64_t threads, ChannelsLayout* l) {
        return lay_out_groups(c, p.h.kernel, p.w.kernel, lanes, threads, l);
      },
      [](const ChannelsLayout& l) { return l.floats; },
      [&](const Correlation& c, const ChannelsLayout& l) { return executed_products_groups(c, l, lanes, false); });
  if (work) {
    const auto& [c, layout] = work->parts().front();
    const bool one = lanes == 8 && c.out_channels <= lanes;
    work->facts.tile = layout.by_rows ? "up to 14 pixels of a row x up to 32 channels"
                                      : std::to_string(tile_pixels(c, lanes, false)) + " pixels x " +
                                            std::to_string(one ? lanes : kGroupBlock) + " channels";
  }
  return work;
}

std::unique_ptr<Work> groups(const Request& r) {
  return r.dtype == Dtype::float64 ? groups_of<double>(r) : groups_of<float>(r);
}

}  // namespace

extern const KernelRow kGroups;
const KernelRow kGroups{"groups",
                        "vectors along the output channels of one group, with its weights packed side by side; for groups of 8 "
                        "channels and more",
                        {true, true, false},
                        refuses,
                        groups,
                        Computes::float32_and_64};

}  // namespace groupwise
