#include "plan/features.h"

#include <algorithm>
#include <cmath>

#include "kernels/layout.h"

namespace groupwise {
namespace {

// Channels, of which kernels and oneDNN compute this many or fractions of it together.
constexpr int64_t kBlock = 16;

// Returns the quotient that is rounded down, also of a negative number.
int64_t floor_div(int64_t value, int64_t by) { return value >= 0 ? value / by : -((-value + by - 1) / by); }

// Returns the fraction of an axis' products (an output and a tap) whose input is in the image.
double inside(const Axis& a) {
  int64_t found = 0;
  for (int64_t tap = 0; tap < a.kernel; tap++) {
    // Output o reads o * stride + shift.
    const int64_t shift = tap * a.dilation - a.pad;
    const int64_t first = std::max<int64_t>(0, -floor_div(shift, a.stride));
    const int64_t beyond = std::min(a.out, floor_div(a.in - 1 - shift, a.stride) + 1);
    found += std::max<int64_t>(0, beyond - first);
  }
  return static_cast<double>(found) / static_cast<double>(a.kernel * a.out);
}

// Returns which fraction of the last block of that many the count fills, over all blocks.
double fill(int64_t count, int64_t block) { return static_cast<double>(count) / static_cast<double>(round_up(count, block)); }

double log2_of(int64_t number) { return std::log2(static_cast<double>(number)); }

}  // namespace

int family_of(const Problem& p) {
  if (p.groups > 1 && depthwise(p)) return 0;
  if (std::max(p.h.stride, p.w.stride) > 2) return 1;
  if (p.groups == 1) return 2;
  return std::min(p.in_channels, p.out_channels) < 8 ? 3 : 4;
}

double bytes_of(const Request& r) {
  Problem p = r.problem;
  p.batch *= r.depth.axis.out;
  return static_cast<double>(4 * numbers_of(p));
}

std::vector<std::pair<const char*, double>> features_of(const Request& r) {
  Problem p = r.problem;
  // A volume is as many planes, whose depth has features of its own.
  const Axis &h = p.h, &w = p.w, &depth = r.depth.axis;
  p.batch *= depth.out;
  const bool to_input = r.direction == Direction::grad_input;
  const int64_t macs = products_of(p), weights = p.groups * p.in_channels * p.out_channels * h.kernel * w.kernel;
  const int64_t numbers = numbers_of(p);
  // The tensor that the pass writes: its width fills vectors of `planar`, its channels those of the others.
  const int64_t written_h = to_input ? h.in : h.out, written_w = to_input ? w.in : w.out;
  const int64_t written = to_input ? p.in_channels : p.out_channels, read = to_input ? p.out_channels : p.in_channels;
  const int64_t summed = r.direction == Direction::grad_weight ? p.batch * h.out * w.out : read * h.kernel * w.kernel;
  const int64_t widest = std::max(p.in_channels, p.out_channels);
  std::vector<std::pair<const char*, double>> found{
      {"channels_last", r.channels_last},
      {"transposed", r.transposed},
      {"dims", static_cast<double>(r.dimensions)},
      {"forward", r.direction == Direction::forward},
      {"grad_input", to_input},
      {"grad_weight", r.direction == Direction::grad_weight},
      {"depthwise", depthwise(p)},
      {"dense", p.groups == 1},
      {"threads", log2_of(r.threads)},
      {"macs", log2_of(macs)},
      {"bytes", std::log2(bytes_of(r))},
      {"macs_a_number", std::log2(static_cast<double>(macs) / static_cast<double>(numbers))},
      {"weights", log2_of(weights)},
      {"positions", log2_of(p.batch * h.out * w.out)},
      {"sum", log2_of(summed)},
      {"batch", log2_of(p.batch)},
      {"groups", log2_of(p.groups)},
      {"samples_groups", log2_of(p.batch * p.groups)},
      {"read_channels", log2_of(read)},
      {"written_channels", log2_of(written)},
      {"widest", log2_of(widest)},
      {"all_channels", log2_of(p.groups * widest)},
      {"taps", log2_of(h.kernel * w.kernel)},
      {"taps_h", log2_of(h.kernel)},
      {"taps_w", log2_of(w.kernel)},
      {"written_h", log2_of(written_h)},
      {"written_w", log2_of(written_w)},
      {"pixels_in", log2_of(h.in * w.in)},
      {"pixels_out", log2_of(h.out * w.out)},
      {"stride", log2_of(h.stride * w.stride)},
      {"stride_w", log2_of(w.stride)},
      {"dilation", log2_of(std::max(h.dilation, w.dilation))},
      {"padding", log2_of(1 + std::max(h.pad, w.pad))},
      {"inside", inside(h) * inside(w)},
      {"fill_w", fill(written_w, 8)},
      {"fill_read", fill(read, kBlock)},
      {"fill_written", fill(written, kBlock)},
      {"fill_all", fill(p.groups * widest, kBlock)},
      {"biased", r.biased}};
  if (r.dimensions < 3) return found;
  const std::pair<const char*, double> others[] = {{"depth_in", log2_of(depth.in)},
                                                   {"depth_out", log2_of(depth.out)},
                                                   {"taps_d", log2_of(depth.kernel)},
                                                   {"stride_d", log2_of(depth.stride)},
                                                   {"inside_d", inside(depth)}};
  found.insert(found.end(), std::begin(others), std::end(others));
  return found;
}

}  // namespace groupwise
