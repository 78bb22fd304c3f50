#include "kernels/volume/plane_bands.h"

#include <algorithm>

#include "bands.h"

namespace groupwise {

std::vector<Band> bands_of(const Request& r, int64_t floats_each) {
  const Problem& p = r.problem;
  const Axis& h = p.h;
  const bool forward = r.direction == Direction::forward;
  const std::vector<Band> whole{{0, 0, h}};
  if (!r.channels_last || r.depth.axis.kernel == 1 || (!forward && h.stride > 1)) return whole;
  // Each band reads all weights, and bands of other problems pack their own.
  const int64_t weights = p.groups * p.in_channels * p.out_channels * r.depth.axis.kernel * h.kernel * p.w.kernel * floats_each;
  if (weights > kScratchFloats) return whole;
  const int64_t x = p.groups * p.in_channels * p.w.in, y = p.groups * p.out_channels * p.w.out;
  const int64_t read = r.depth.axis.kernel * (forward ? x * h.stride : y) * floats_each,
                written = (forward ? y : x) * floats_each;
  const int64_t halo = (h.kernel - 1) * h.dilation;
  const int64_t around = r.depth.axis.kernel * (forward ? x : y) * halo * floats_each;
  // Half of the L2 cache, or all of it where bands would read more rows around them than half of what they write.
  const int64_t rows = std::max({(kScratchFloats - around) / (read + written), 2 * halo, int64_t{1}});
  if (around + rows * (read + written) > 2 * kScratchFloats) return whole;
  const int64_t height = forward ? h.out : h.in, count = ceil_div(height, rows);
  std::vector<Band> bands;
  for (int64_t i = 0; i < count; i++) {
    const Range made{i * height / count, (i + 1) * height / count};
    const Range reads = forward ? rows_read(h, made)
                                : Range{std::max<int64_t>(0, made.first + h.pad - halo), std::min(h.out, made.last + h.pad)};
    // One that sees padding alone is no problem of its own.
    if (reads.first >= reads.last) return whole;
    const int64_t from = reads.first, size = reads.last - from, written_rows = made.last - made.first;
    const Axis axis = forward ? Axis{size, written_rows, h.kernel, h.stride, from - (made.first * h.stride - h.pad), h.dilation}
                              : Axis{written_rows, size, h.kernel, h.stride, made.first + h.pad - from, h.dilation};
    bands.push_back({made.first, from, axis});
  }
  return bands;
}

}  // namespace groupwise
