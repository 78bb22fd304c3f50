#include "layout.h"

#include <numeric>

namespace groupwise {
namespace {

// Avoids channels that start a multiple of 4 KiB apart, which would all share the same cache sets.
int64_t channel_floats(int64_t floats) { return floats % 1024 == 0 ? floats + 16 : floats; }

// The floats up to which a task computes several small images, so that they leave room in the L1 cache (14x14 depthwise, one
// core, ms: one image 0.102, floats of 1024 0.093, 2048 0.091, 4096 0.089, 8192 0.090).
constexpr int64_t kSmall = 4096;

// Returns the lowest position that an output's taps read in any phase; `reach` is how far beyond it others read.
int64_t lowest(const std::vector<Phase>& phases) {
  int64_t low = phases.front().low;
  for (const Phase& s : phases)
    if (s.taps > 0) low = std::min(low, s.low);
  return low;
}
int64_t reach(const std::vector<Phase>& phases) {
  int64_t high = lowest(phases);
  for (const Phase& s : phases)
    if (s.taps > 0) high = std::max(high, s.low + s.span());
  return high - lowest(phases);
}
// Returns the most outputs of a row in any phase, and one where there are none.
int64_t widest(const std::vector<Phase>& phases) {
  int64_t out = 1;
  for (const Phase& s : phases) out = std::max(out, s.out);
  return out;
}

void measure(const Correlation& c, int64_t lanes, CorrelationLayout* l) {
  const int64_t stride = c.w.front().stride, columns = round_up(l->block.columns, lanes);
  Plane& p = l->plane;
  p.low_h = c.h.low;
  p.low_w = lowest(c.w);
  p.rows = (l->block.rows - 1) * c.h.stride + c.h.span() + 1;
  p.stride = stride;
  p.phase = columns + reach(c.w) / stride;
  p.padded = l->block.columns + reach(c.w) / stride;
  p.row = round_up(p.phase * stride, lanes);
  p.channel = channel_floats(p.rows * p.row);
  p.wide = l->block.columns == widest(c.w);
  p.whole = p.wide && l->block.rows == c.h.out;
  l->stage.phase = columns;
  l->stage.row = columns * static_cast<int64_t>(c.w.size());
  l->stage.channel = channel_floats(l->stage.row * l->block.rows);
  // A tile of rows may read the inputs of one row of outputs beyond the last, which it does not use.
  const int64_t beyond = l->sharing.apart * c.h.stride * p.row;
  l->input_floats = round_up(l->block.groups * c.in_channels * p.channel + beyond, 16);
  l->output_floats = l->staged ? l->block.groups * c.out_channels * l->stage.channel : 0;
}

}  // namespace

bool lay_out(const Correlation& c, int64_t lanes, int64_t threads, CorrelationLayout* l) {
  // A block may fill most of the L2 cache, so an image that fits a quarter of the scratch stays whole.
  constexpr int64_t kTarget = kScratchFloats / 4;
  l->staged = c.w.size() > 1 || c.output_strides.w != 1;
  const int64_t common = std::gcd(c.h.stride, c.h.spacing);
  l->sharing = {c.h.spacing / common, c.h.stride / common, c.h.spacing * c.h.stride / common};
  const bool channels_last = c.input_strides.w != 1 || c.output_strides.w != 1;
  Block& b = l->block;
  b.columns = widest(c.w);
  b.rows = std::max<int64_t>(1, c.h.out);
  b.groups = 1;
  // Neighbouring channels of a channels-last tensor share a cache line of 16 floats.
  if (channels_last) b.groups = std::min(c.groups, std::max<int64_t>(1, 16 / std::max(c.in_channels, c.out_channels)));
  const auto floats = [&] {
    measure(c, lanes, l);
    return l->input_floats + l->output_floats;
  };
  while (!channels_last && 2 * b.groups <= c.groups && floats() <= kSmall / 2 && l->tasks(c) >= 16 * threads) b.groups *= 2;
  // A block of fewer rows than the kernel copies most of its input again.
  while (floats() > kTarget && b.rows * c.h.stride > 2 * c.h.span() + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.columns > 4 * lanes) b.columns = round_up(ceil_div(b.columns, 2), lanes);
  while (floats() > kScratchFloats && b.groups > 1) b.groups = ceil_div(b.groups, 2);
  if (floats() > kScratchFloats) return false;
  // Each thread gets at least four tasks.
  while (l->tasks(c) < 4 * threads && threads > 1 && b.rows * c.h.stride > 2 * c.h.span() + 1 && b.rows > 1)
    b.rows = ceil_div(b.rows, 2);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  for (const Phase& s : c.w) {
    std::vector<int32_t> at;
    for (int64_t t = 0; t < s.taps; t++) {
      const int64_t x = s.low - l->plane.low_w + t * s.spacing;
      at.push_back(static_cast<int32_t>(x % l->plane.stride * l->plane.phase + x / l->plane.stride));
    }
    l->columns.push_back(at);
  }
  return true;
}

namespace {

// Returns the vectors of output channels, each of which holds whole groups or belongs to one.
int64_t vectors_of(int64_t groups, int64_t out_channels, int64_t lanes) {
  return out_channels >= lanes ? groups * ceil_div(out_channels, lanes) : ceil_div(groups * out_channels, lanes);
}

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
bool lay_out_in_place(const Correlation& c, int64_t out_w, int64_t lanes, int64_t threads, ChannelsLayout* l) {
  // The weights need only stay in the L2 cache: the more channels of a pixel are read at once the better, whether the weights
  // fit L1 or not (8 channels a group of 256, of stride 2: 40 % of peak by 32 channels, 43 % by all; depthwise 960: 39 %
  // and 41 %).
  constexpr int64_t kTarget = 24 * 1024;
  const int64_t least = std::max<int64_t>(1, lanes / c.out_channels);
  const int64_t vector = (c.in_channels * l->kernel_h * l->kernel_w + 1) * lanes;
  const auto floats = [&](int64_t groups) { return vectors_of(groups, c.out_channels, lanes) * vector; };
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, least};
  b.groups = groups_within(kTarget, c.groups, least, floats);
  const auto tasks = [&] {
    l->blocks = even_blocks(c.groups, least, &b.groups);
    return l->tasks(c);
  };
  // Rows are halved first, to at most four tasks a thread, then blocks, then columns.
  while (tasks() < 4 * threads && threads > 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (tasks() < 2 * threads && threads > 1 && b.groups > least) b.groups = b.groups / 2 / least * least;
  while (tasks() < 2 * threads && threads > 1 && b.columns > 8 * kPixelTile)
    b.columns = round_up(ceil_div(b.columns, 2), kPixelTile);
  tasks();
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  l->input = l->output = {0, 0, 0};
  l->input_floats = 0;
  l->weight_floats = l->floats = floats(largest_block(c.groups, l->blocks, b.groups));
  // Prefetching pays where the tensors do not stay in the L2 cache. Others lose up to 8 % by it, as do rows of fewer than three
  // tiles.
  const int64_t floats_of_all =
      c.batch * c.groups *
      (c.in_channels * c.h.in * c.w.front().in + c.out_channels * c.h.out * c.h.step * out_w * c.w.front().step);
  l->ahead = floats_of_all > 3 * kScratchFloats && b.columns > 2 * kPixelTile;
  return l->floats <= kScratchFloats;
}

}  // namespace

bool lay_out_channels(const Correlation& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                      ChannelsLayout* l) {
  constexpr int64_t kTarget = 12 * 1024;
  const int64_t out_w = widest(c.w);
  const int64_t stride = c.w.front().stride;
  l->staged = c.input_strides.c != 1 || c.output_strides.c != 1;
  l->ahead = false;
  l->kernel_h = kernel_h;
  l->kernel_w = kernel_w;
  l->low_w = lowest(c.w);
  if (!l->staged) return lay_out_in_place(c, out_w, lanes, threads, l);
  l->blocks = ceil_div(c.groups, kChannelBlock);
  l->weight_floats = (kernel_h * kernel_w + 1) * kChannelBlock;
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, std::min(c.groups, kChannelBlock)};
  const auto floats = [&] {
    l->input = {(b.rows - 1) * c.h.stride + c.h.span() + 1, (b.columns - 1) * stride + reach(c.w) + 1, kChannelBlock};
    l->output = {b.rows, b.columns * c.w.front().step, kChannelBlock};
    l->input_floats = l->input.rows * l->input.columns * kChannelBlock;
    return l->floats = l->input_floats + l->weight_floats + l->output.rows * l->output.columns * kChannelBlock;
  };
  // A block of fewer rows than the kernel copies most of its input again.
  while (floats() > kTarget && b.rows * c.h.stride > 2 * c.h.span() + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.columns > kPixelTile) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  while (l->tasks(c) < 4 * threads && threads > 1 && b.rows * c.h.stride > 2 * c.h.span() + 1 && b.rows > 1)
    b.rows = ceil_div(b.rows, 2);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  return true;
}

bool lay_out_groups(const Correlation& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                    ChannelsLayout* l) {
  const int64_t out_w = widest(c.w);
  l->kernel_h = kernel_h;
  l->kernel_w = kernel_w;
  l->low_w = lowest(c.w);
  l->staged = c.output_strides.c != 1;
  l->blocks = c.groups;
  const bool dots = channels_form(c, lanes) == ChannelsForm::dots;
  // All weights are packed once for all samples, if that leaves most of the scratch to the tensors.
  const int64_t block_floats = group_block_floats(c, kernel_h, kernel_w);
  const int64_t blocks = ceil_div(c.out_channels, kGroupBlock);
  l->weight_floats = dots ? 0 : block_floats * (block_floats * blocks <= kScratchFloats / 4 ? blocks : 1);
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, 1};
  const auto floats = [&] {
    l->input = {(b.rows - 1) * c.h.stride + c.h.span() + 1, (b.columns - 1) * c.w.front().stride + reach(c.w) + 1,
                round_up(c.in_channels, lanes)};
    l->output = {b.rows, b.columns * c.w.front().step, round_up(c.out_channels, lanes)};
    l->input_floats = l->input.rows * l->input.columns * l->input.width;
    const int64_t output = l->staged ? l->output.rows * l->output.columns * l->output.width : 0;
    return l->floats = l->input_floats + l->weight_floats + output;
  };
  // Every block packs the weights again, so it should not be small; but one that fills the L2 cache leaves no room for the
  // tensors.
  while (floats() > kScratchFloats / 3 && b.rows * b.columns > 1024 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.columns > 6) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  // An uneven number of tasks leaves threads idle: five on two threads a sixth of the time.
  const auto uneven = [&] {
    const int64_t tasks = l->tasks(c);
    return tasks < 2 * threads || (tasks < 5 * threads && tasks % threads != 0);
  };
  while (threads > 1 && uneven() && b.rows * c.h.stride > c.h.span() + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  return true;
}

// Divides the samples and positions into parts where there are too few tasks for the threads.
template <class Layout>
void divide_positions(const Problem& p, int64_t threads, Layout* l) {
  l->parts = 1;
  const int64_t tasks = l->tasks(p);
  if (threads <= 1 || tasks >= 2 * threads) return;
  const int64_t image_blocks = p.batch * ceil_div(p.h.out, l->block.rows) * ceil_div(p.w.out, l->block.columns);
  l->parts = std::max<int64_t>(1, std::min(image_blocks, ceil_div(2 * threads, tasks)));
}

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightLayout* l) {
  constexpr int64_t kTarget = kScratchFloats / 8;
  const Problem& p = work.problem;
  const int64_t slots = p.in_channels * p.h.kernel * p.w.kernel;
  const bool channels_last = work.input_strides.w != 1 || work.grad_output_strides.w != 1;
  const int64_t span = (p.h.kernel - 1) * p.h.dilation, reach = (p.w.kernel - 1) * p.w.dilation;
  Block& b = l->block;
  b = {p.h.out, p.w.out, 1};
  if (channels_last) b.groups = std::min(p.groups, std::max<int64_t>(1, 16 / std::max(p.in_channels, p.out_channels)));
  l->outputs = p.out_channels;
  l->parts = 1;
  const auto floats = [&] {
    const int64_t columns = round_up(b.columns, lanes);
    const bool wide = b.columns == p.w.out, whole = wide && b.rows == p.h.out;
    Plane& in = l->input;
    in = {-p.h.pad, -p.w.pad, (b.rows - 1) * p.h.stride + span + 1, p.w.stride, columns + reach / p.w.stride, 0, 0, 0,
          wide,     whole};
    in.padded = in.phase;
    in.row = round_up(in.phase * in.stride, lanes);
    in.channel = channel_floats(in.rows * in.row);
    l->output = {0, 0, b.rows, 1, columns, columns, channel_floats(b.rows * columns), columns, wide, whole};
    l->input_floats = round_up(b.groups * p.in_channels * in.channel + 2 * p.h.dilation * p.h.stride * in.row, 16);
    l->output_floats = round_up(b.groups * l->outputs * l->output.channel, 16);
    return l->floats = l->input_floats + l->output_floats + b.groups * l->outputs * slots;
  };
  while (!channels_last && 2 * b.groups <= p.groups && floats() <= kSmall / 2 && l->tasks(p) >= 16 * threads) b.groups *= 2;
  while (floats() > kTarget && b.rows * p.h.stride > 2 * span + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  // A lane's sums end with the block, which must not exceed a run. A row narrower than a vector still adds to each lane once.
  while (b.rows * ceil_div(b.columns, lanes) > kRun && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  if (b.columns > kRun * lanes) b.columns = kRun * lanes;
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.groups > 1) b.groups = ceil_div(b.groups, 2);
  while (floats() > kScratchFloats && l->outputs > 4) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > kScratchFloats && b.columns > 4 * lanes) b.columns = round_up(ceil_div(b.columns, 2), lanes);
  if (floats() > kScratchFloats) return false;
  b.rows = ceil_div(p.h.out, ceil_div(p.h.out, b.rows));
  divide_positions(p, threads, l);
  floats();
  for (int64_t t = 0; t < p.w.kernel; t++) {
    const int64_t x = t * p.w.dilation;
    l->columns.push_back(static_cast<int32_t>(x % p.w.stride * l->input.phase + x / p.w.stride));
  }
  for (int64_t c = 0; c < p.in_channels; c++)
    for (int64_t kh = 0; kh < p.h.kernel; kh++)
      for (const int32_t column : l->columns)
        l->slots.push_back(static_cast<int32_t>(c * l->input.channel + kh * p.h.dilation * l->input.row + column));
  return true;
}

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightNarrowLayout* l) {
  // The sums stay in the L1 cache, beside the rows that are read.
  constexpr int64_t kTarget = 4 * 1024;
  const Problem& p = work.problem;
  const int64_t slots = p.in_channels * p.h.kernel * p.w.kernel, least = std::max<int64_t>(1, lanes / p.out_channels);
  const auto floats = [&](int64_t groups) { return vectors_of(groups, p.out_channels, lanes) * lanes * slots; };
  Block& b = l->block;
  // A lane's sums end with the block, which must not exceed a run.
  b.columns = ceil_div(p.w.out, ceil_div(p.w.out, kRun));
  b.rows = std::min(p.h.out, std::max<int64_t>(1, kRun / p.w.out));
  b.groups = groups_within(kTarget, p.groups, least, floats);
  l->blocks = even_blocks(p.groups, least, &b.groups);
  while (l->blocks < 2 * threads && threads > 1 && b.groups >= 2 * least) {
    b.groups = b.groups / 2 / least * least;
    l->blocks = even_blocks(p.groups, least, &b.groups);
  }
  divide_positions(p, threads, l);
  l->floats = floats(largest_block(p.groups, l->blocks, b.groups));
  return l->floats <= kScratchFloats;
}

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, GradWeightChannelsLayout* l) {
  constexpr int64_t kTarget = 12 * 1024;
  const Problem& p = work.problem;
  const int64_t taps = p.h.kernel * p.w.kernel, span = (p.h.kernel - 1) * p.h.dilation;
  l->depthwise = depthwise(p);
  l->staged = l->depthwise && work.grad_output_strides.c != 1;
  l->input.width = l->depthwise ? kChannelBlock : round_up(p.in_channels, lanes);
  l->outputs = l->depthwise ? 1 : p.out_channels;
  Block& b = l->block;
  b = {p.h.out, p.w.out, l->depthwise ? std::min(p.groups, kChannelBlock) : 1};
  const auto floats = [&] {
    l->input.rows = (b.rows - 1) * p.h.stride + span + 1;
    l->input.columns = (b.columns - 1) * p.w.stride + (p.w.kernel - 1) * p.w.dilation + 1;
    l->output = {b.rows, b.columns, kChannelBlock};
    l->input_floats = l->input.rows * l->input.columns * l->input.width;
    l->output_floats = l->staged ? b.rows * b.columns * kChannelBlock : 0;
    return l->floats = l->input_floats + l->output_floats + l->outputs * taps * l->input.width;
  };
  while (l->outputs > 16 && l->outputs * taps * l->input.width > kTarget) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > 2 * kTarget && b.rows * p.h.stride > 2 * span + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && l->outputs > 4) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > kScratchFloats && b.columns > 1) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  b.rows = ceil_div(p.h.out, ceil_div(p.h.out, b.rows));
  divide_positions(p, threads, l);
  floats();
  for (int64_t kh = 0; kh < p.h.kernel; kh++)
    for (int64_t kw = 0; kw < p.w.kernel; kw++)
      for (int64_t c = 0; c < l->input.width; c += lanes)
        l->slots.push_back(
            static_cast<int32_t>((kh * p.h.dilation * l->input.columns + kw * p.w.dilation) * l->input.width + c));
  return true;
}

}  // namespace groupwise
