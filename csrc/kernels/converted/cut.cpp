#include "kernels/converted/cut.h"

#include <algorithm>

#include "arguments.h"
#include "kernels/layout.h"
#include "sharing.h"

namespace groupwise {
namespace {

// The groups that fill the lanes of some vectors.
constexpr int64_t kFewLanes = 8;
// The most floats of a chunk whose weights are many.
constexpr int64_t kMostCopied = int64_t{1} << 22;

// Fewer rows would read too many that their neighbours read too.
int64_t least_rows(const Request& r) {
  const Axis& a = r.problem.h;
  const int64_t span = 4 * (a.kernel - 1) * a.dilation;
  return std::max<int64_t>(8, r.direction == Direction::grad_input ? span : ceil_div(span, a.stride));
}

// Returns how many rows a chunk of one sample has, which are all where none can be left out. `blocks` is how many chunks of a sample
// threads want.
int64_t rows_of_chunk(const Request& r, int64_t floats, int64_t most, int64_t blocks) {
  const int64_t all = rows_written(r);
  const int64_t wanted = std::max(blocks, ceil_div(floats, most));
  int64_t rows = std::max(least_rows(r), ceil_div(all, wanted));
  if (r.direction == Direction::grad_input) rows = round_up(rows, r.problem.h.stride);
  for (int64_t first = 0; first < all; first += rows)
    if (!rows_of(r, first, std::min(rows, all - first))) return all;
  return std::min(rows, all);
}

}  // namespace

int64_t rows_written(const Request& r) { return r.direction == Direction::grad_input ? r.problem.h.in : r.problem.h.out; }

std::optional<Rows> rows_of(const Request& r, int64_t first, int64_t count) {
  const Axis& a = r.problem.h;
  const int64_t span = (a.kernel - 1) * a.dilation;
  const bool to_input = r.direction == Direction::grad_input;
  if (count == rows_written(r)) return Rows{0, count, 0, to_input ? a.out : a.in, a.pad};
  if (to_input) {
    const int64_t low = std::max<int64_t>(0, first + a.pad - span);
    const int64_t from = std::min(ceil_div(low, a.stride), (first + a.pad) / a.stride);
    const int64_t to = std::min(a.out, (first + count - 1 + a.pad) / a.stride + 1);
    if (to <= from) return std::nullopt;
    return Rows{first, count, from, to - from, first + a.pad - from * a.stride};
  }
  const int64_t low = first * a.stride - a.pad;
  const int64_t from = std::max<int64_t>(0, low), to = std::min(a.in, low + (count - 1) * a.stride + span + 1);
  if (to <= from) return std::nullopt;
  return Rows{first, count, from, to - from, from - low};
}

Cut cut(const Request& r) {
  const Problem& p = r.problem;
  const int64_t threads = threads_worth(r);
  const int64_t image = p.in_channels * pixels(r, true) + p.out_channels * pixels(r, false);
  const bool gradient = r.direction == Direction::grad_weight;
  // Half of the cache is the scratch of the kernel. Chunks of an eighth take up to a quarter less time than chunks of the other
  // half, and smaller ones no less (depthwise 3x3 layer of 144 channels on 56x56, bfloat16, one core of a Xeon).
  const int64_t chunk = kScratchFloats / 4;
  // In channels_last all groups stay together: rows of some of them are short, and kernels that have groups in their lanes need
  // them. They need some in contiguous tensors too.
  const int64_t lanes = std::min(kChannelBlock, kScratchFloats / image);
  int64_t groups = r.channels_last ? p.groups : std::clamp(std::max(chunk / image, lanes), int64_t{1}, p.groups);
  // Fewer samples than threads leave the others some groups.
  const int64_t shares = ceil_div(threads, p.batch);
  if (shares > 1 && !r.channels_last) groups = std::min(groups, std::max(int64_t{1}, p.groups / shares));
  // Kernels that have groups in their lanes need some of them, also of the last range.
  if (groups < p.groups && groups >= kFewLanes) {
    const int64_t step = groups < kChannelBlock ? kFewLanes : kChannelBlock;
    groups -= groups % step;
    while (groups < p.groups && p.groups % groups != 0 && p.groups % groups < kFewLanes) groups += step;
    groups = std::min(groups, p.groups);
  }
  const int64_t ranges = ceil_div(p.groups, groups);
  // A chunk of few numbers would write more of a weight's gradient than it reads of images, or read more of a weight.
  const int64_t heavy = 4 * groups * weights_of(r);
  const int64_t most = std::max(chunk, std::min(heavy, gradient ? kMostCopied : kScratchFloats));
  // Each chunk of rows reads the whole weight.
  const int64_t wanted = weights_of(r) <= image ? ceil_div(threads, p.batch * ranges) : 1;
  const int64_t rows = rows_of_chunk(r, groups * image, most, wanted);
  const int64_t blocks = ceil_div(rows_written(r), rows);
  const bool shared = threads > 1 && p.batch * ranges * blocks >= threads;
  // Threads that share the ranges of groups need no samples of their own.
  const int64_t apart = shared ? std::min(p.batch, ceil_div(threads, ranges * blocks)) : 1;
  const int64_t samples = blocks > 1 ? 1 : std::clamp(most / (groups * image), int64_t{1}, p.batch / apart);
  const int64_t steps = ceil_div(p.batch, samples) * blocks;
  return {samples, groups, rows, gradient && shared ? std::min(steps, ceil_div(threads, ranges)) : 1, threads, shared};
}

int64_t pixels(const Request& r, bool x) {
  const Problem& p = r.problem;
  const Axis& depth = r.depth.axis;
  return x ? depth.in * p.h.in * p.w.in : depth.out * p.h.out * p.w.out;
}

int64_t weights_of(const Request& r) {
  const Problem& p = r.problem;
  return p.in_channels * p.out_channels * r.depth.axis.kernel * p.h.kernel * p.w.kernel;
}

Request in_float32(const Request& r, int64_t samples, int64_t groups, const Rows& rows, int64_t threads) {
  Request one = r;
  one.dtype = Dtype::float32;
  one.threads = threads;
  Problem& p = one.problem;
  p.batch = samples;
  p.groups = groups;
  const bool to_input = r.direction == Direction::grad_input;
  p.h.in = to_input ? rows.count : rows.reads;
  p.h.out = to_input ? rows.reads : rows.count;
  p.h.pad = rows.pad;
  const int64_t x = groups * p.in_channels, y = groups * p.out_channels;
  const Call call{p, r.dimensions, r.transposed, r.channels_last, x, y, r.depth.axis};
  const bool weight_last = r.w_strides.c == 1 && p.in_channels > 1;
  one.x_strides = new_strides(call, true);
  one.y_strides = new_strides(call, false);
  one.w_strides = dense_weight_strides(call, weight_last);
  if (r.dimensions == 3) one.depth = dense_depth(call, weight_last);
  return one;
}

Request in_float32(const Request& r) {
  return in_float32(r, r.problem.batch, r.problem.groups, *rows_of(r, 0, rows_written(r)), r.threads);
}

}  // namespace groupwise
