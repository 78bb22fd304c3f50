#include "kernels/narrow/layout.h"

#include "kernels/narrow/slides.h"

namespace groupwise {

namespace {

// Returns how many groups of a block keep to a target of floats, doubling from `least`, even if that exceeds the target. All
// are returned where they fit, because pixels read in halves come slower from memory (forward, 8 samples of 200 channels 28x28,
// ms, halves | all: 1.43 | 0.67, of 96 56x56 3.45 | 3.06).
template <class F>
int64_t groups_within(int64_t target, int64_t all, int64_t least, F&& floats) {
  if (floats(all) <= target) return std::max(least, all);
  int64_t groups = least;
  while (2 * groups <= all && floats(2 * groups) <= target) groups *= 2;
  return groups;
}

// Divides groups into even blocks of about `most`, a multiple of `least`; the last is what is left, never less than `least`.
int64_t even_blocks(int64_t groups, int64_t least, int64_t* most) {
  const int64_t blocks = ceil_div(groups, *most);
  *most = round_up(ceil_div(groups, blocks), least);
  const int64_t whole = groups / *most;
  return std::max<int64_t>(1, groups - whole * *most >= least ? whole + 1 : whole);
}

// Returns the groups of the largest block; the last may be larger or smaller than the others.
int64_t largest_block(int64_t groups, int64_t blocks, int64_t most) {
  return std::max(blocks > 1 ? most : 0, groups - (blocks - 1) * most);
}

// Lays out channels-last tensors, which are read in place.
bool lay_out_in_place(const CorrelationShape& c, int64_t out_w, int64_t lanes, int64_t threads, ChannelsLayout* l) {
  // The weights need only stay in the L2 cache: the more channels of a pixel are read at once from beyond it the better, whether
  // the weights fit L1 or not (8 channels a group of 256, of stride 2: 40 % of peak by 32 channels, 43 % by all).
  const int64_t kTarget = floats_worth(24 * 1024, c), kFirstCache = floats_worth(8 * 1024, c);
  // Tensors of 2.1 MiB come faster by whole pixels, with 2 MiB of L2 cache too (3x3 depthwise of 256 channels 33x33, dilation
  // 2, one thread of an Intel Xeon: 0.133 ms instead of 0.165).
  const int64_t kMostInPieces = floats_worth(512 * 1024, c);
  const int64_t least = std::max<int64_t>(1, lanes / c.out_channels);
  const int64_t vector = c.in_channels * l->kernel_h * l->kernel_w * lanes;
  const auto floats = [&](int64_t groups) { return vectors_of(groups, c.out_channels, lanes) * vector; };
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, least};
  b.groups = groups_within(kTarget, c.groups, least, floats);
  if (c.in_channels == 1 && !beyond_cache(c) && numbers_of(c) <= kMostInPieces) {
    // Pieces of pixels come from the L2 cache as fast as whole ones, so that the rows that a row of outputs reads stay in L1
    // (5x5 depthwise of 672 channels 14x14: 0.041 ms instead of 0.049; 3x3 of 576 channels: 0.020 instead of 0.025).
    const int64_t rows = std::min(c.h.span() + 1, c.h.in) * c.w.front().in + c.out_channels * out_w * c.w.front().step;
    const int64_t most = kFirstCache / (rows + vector / lanes * c.out_channels) / least * least;
    b.groups = std::max(least, std::min(b.groups, most));
  }
  const auto tasks = [&] {
    l->blocks = even_blocks(c.groups, least, &b.groups);
    return l->tasks(c);
  };
  // Threads share the channels of few pixels, and else rows from top to bottom, as in brgemm: what a layer writes is then where the
  // next one reads it, in the L2 cache of the same core.
  const bool by_channels = threads > 1 && c.groups >= 4 * least * threads && few_pixels(c, threads);
  if (by_channels) b.groups = std::min(b.groups, round_up(ceil_div(c.groups, threads), least));
  // Rows are halved first, to at most four tasks a thread, then blocks, then columns.
  while (!by_channels && tasks() < 4 * threads && threads > 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (!by_channels && tasks() < 2 * threads && threads > 1 && b.groups > least) b.groups = b.groups / 2 / least * least;
  while (!by_channels && tasks() < 2 * threads && threads > 1 && b.columns > 8 * kPixelTile)
    b.columns = round_up(ceil_div(b.columns, 2), kPixelTile);
  tasks();
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  l->input = l->output = {0, 0, 0};
  l->input_floats = 0;
  l->weight_floats = l->floats = floats(largest_block(c.groups, l->blocks, b.groups));
  // Prefetching pays where the tensors do not stay in the L2 cache. Others lose up to 8 % by it, as do rows of fewer than three
  // tiles.
  l->ahead = beyond_cache(c) && b.columns > 2 * kPixelTile;
  return l->floats <= c.scratch;
}

}  // namespace

bool lay_out_channels(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                      ChannelsLayout* l) {
  const int64_t kTarget = floats_worth(12 * 1024, c);
  const int64_t out_w = widest(c.w);
  const int64_t stride = c.w.front().stride;
  l->staged = c.input_strides.c != 1 || c.output_strides.c != 1;
  l->ahead = false;
  l->kernel_h = kernel_h;
  l->kernel_w = kernel_w;
  l->low_w = lowest(c.w);
  l->strip = {1, kPixelTile};
  if (!l->staged) return lay_out_in_place(c, out_w, lanes, threads, l);
  l->blocks = ceil_div(c.groups, kChannelBlock);
  l->weight_floats = (kernel_h * kernel_w + 1) * kChannelBlock;
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, std::min(c.groups, kChannelBlock)};
  const auto floats = [&] {
    l->input = {std::min((b.rows - 1) * c.h.stride + c.h.span() + 1, c.h.in), (b.columns - 1) * stride + reach(c.w) + 1,
                kChannelBlock};
    l->output = {b.rows, b.columns * c.w.front().step, kChannelBlock};
    l->input_floats = l->input.rows * l->input.columns * kChannelBlock;
    return l->floats = l->input_floats + l->weight_floats + l->output.rows * l->output.columns * kChannelBlock;
  };
  // A block of fewer rows than the kernel copies most of its input again.
  const int64_t shared = std::min(c.h.span(), c.h.in);
  while (floats() > kTarget && b.rows * c.h.stride > 2 * shared + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > c.scratch && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > c.scratch && b.columns > kPixelTile) b.columns = ceil_div(b.columns, 2);
  if (floats() > c.scratch) return false;
  while (l->tasks(c) < 4 * threads && threads > 1 && b.rows * c.h.stride > 2 * shared + 1 && b.rows > 1)
    b.rows = ceil_div(b.rows, 2);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  return true;
}

namespace {

// Tells whether the runs of sums that slide, over blocks of `rows` rows, are few or long enough. One ends with each block, and
// with each turn of a dilation, and all of them are added up one after the other: runs of three outputs had four times
// PyTorch's error.
bool slides_in_long_runs(const Problem& p, int64_t rows) {
  constexpr int64_t kFewest = 16;
  const int64_t by_h = std::min(p.h.stride == 1 ? p.h.dilation : 1, std::min(rows, p.h.out));
  const int64_t by_w = std::min(p.w.stride == 1 ? p.w.dilation : 1, p.w.out);
  const int64_t runs = p.batch * ceil_div(p.h.out, rows) * by_h * by_w;
  return runs <= kRun || runs * kFewest <= p.batch * p.h.out * p.w.out;
}

}  // namespace

bool slides_past_rows(const GradWeightShape& work, int64_t lanes) {
  // A vector of AVX-512 is a cache line.
  return lanes == floats_worth(16, work) && may_slide_past_rows(work.problem);
}

bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightNarrowLayout* l) {
  // The sums stay in the L1 cache, beside the rows that are read.
  const int64_t kTarget = floats_worth(4 * 1024, work);
  const Problem& p = work.problem;
  const int64_t least = std::max<int64_t>(1, lanes / p.out_channels);
  const int64_t rows = std::max<int64_t>(1, (kSummedOutputs + p.w.out / 2) / p.w.out);
  const int64_t sliding_rows = round_up(rows, slide_rows(lanes) * p.h.dilation);
  l->slides = may_slide({p.h.kernel, p.h.stride, p.h.dilation}, {p.w.kernel, p.w.stride, p.w.dilation}, p.in_channels,
                        p.out_channels, lanes) &&
              slides_in_long_runs(p, sliding_rows);
  l->rows = slides_past_rows(work, lanes);
  const int64_t slots = p.in_channels * p.h.kernel * p.w.kernel + l->slides;
  const auto floats = [&](int64_t groups) { return vectors_of(groups, p.out_channels, lanes) * lanes * slots; };
  Block& b = l->block;
  b.columns = l->slides ? p.w.out : ceil_div(p.w.out, ceil_div(p.w.out, kSummedOutputs));
  b.rows = std::min(p.h.out, l->slides ? sliding_rows : rows);
  b.groups = groups_within(kTarget, p.groups, least, floats);
  l->blocks = even_blocks(p.groups, least, &b.groups);
  while (l->blocks < 2 * threads && threads > 1 && b.groups >= 2 * least) {
    b.groups = b.groups / 2 / least * least;
    l->blocks = even_blocks(p.groups, least, &b.groups);
  }
  divide_positions(p, threads, l);
  l->ahead = beyond_cache(work);
  l->floats = floats(largest_block(p.groups, l->blocks, b.groups));
  return l->floats <= work.scratch;
}

}  // namespace groupwise
