#include "kernels/volume/plane_bands.h"

#include <algorithm>

#include "bands.h"

namespace groupwise {

std::vector<Band> bands_of(const Request& r, int64_t floats_each) {
  // Fewer rows would read much more than they write: the kernel's rows around them.
  constexpr int64_t kLeastRows = 4;
  const Problem& p = r.problem;
  const Axis& h = p.h;
  const bool forward = r.direction == Direction::forward;
  const std::vector<Band> whole{{0, 0, h}};
  if (!r.channels_last || r.depth.axis.kernel == 1 || (!forward && h.stride > 1)) return whole;
  const int64_t x = p.groups * p.in_channels * p.w.in, y = p.groups * p.out_channels * p.w.out;
  const int64_t read = r.depth.axis.kernel * (forward ? x * h.stride : y) * floats_each,
                written = (forward ? y : x) * floats_each;
  const int64_t around = r.depth.axis.kernel * (forward ? x : y) * (h.kernel - 1) * h.dilation * floats_each;
  const int64_t height = forward ? h.out : h.in;
  const int64_t most = std::max(kLeastRows, (kScratchFloats - around) / (read + written)), count = ceil_div(height, most);
  std::vector<Band> bands;
  for (int64_t i = 0; i < count; i++) {
    const Range made{i * height / count, (i + 1) * height / count};
    const Range reads = forward ? rows_read(h, made)
                                : Range{std::max<int64_t>(0, made.first + h.pad - (h.kernel - 1) * h.dilation),
                                        std::min(h.out, made.last + h.pad)};
    // One that sees padding alone is no problem of its own.
    if (reads.first >= reads.last) return whole;
    const int64_t from = reads.first, size = reads.last - from, rows = made.last - made.first;
    const Axis axis = forward ? Axis{size, rows, h.kernel, h.stride, from - (made.first * h.stride - h.pad), h.dilation}
                              : Axis{rows, size, h.kernel, h.stride, made.first + h.pad - from, h.dilation};
    bands.push_back({made.first, from, axis});
  }
  return bands;
}

}  // namespace groupwise
