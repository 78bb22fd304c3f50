#include "kernels/pixels/layout.h"

#include <numeric>

namespace groupwise {
namespace {

// With fewer output channels what is copied, or prefetched, is read too seldom to be worth its time.
constexpr int64_t kLeastOutputs = 16;

}  // namespace

bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightChannelsLayout* l) {
  const int64_t kTarget = floats_worth(12 * 1024, work);
  const Problem& p = work.problem;
  const int64_t taps = p.h.kernel * p.w.kernel, span = (p.h.kernel - 1) * p.h.dilation;
  l->depthwise = depthwise(p);
  l->staged = l->depthwise && work.grad_output_strides.c != 1;
  l->clip = worth_clipping(forward_phase(p.h)) || worth_clipping(forward_phase(p.w));
  l->in_place = !l->depthwise && one_tap(p.h) && one_tap(p.w) && work.input_strides.c == 1 && p.in_channels >= lanes;
  l->input.width = l->depthwise ? kChannelBlock : round_up(p.in_channels, lanes);
  l->outputs = l->depthwise ? 1 : p.out_channels;
  Block& b = l->block;
  b = {p.h.out, p.w.out, l->depthwise ? std::min(p.groups, kChannelBlock) : 1};
  const auto floats = [&] {
    l->input.rows = (b.rows - 1) * p.h.stride + span + 1;
    l->input.columns = (b.columns - 1) * p.w.stride + (p.w.kernel - 1) * p.w.dilation + 1;
    l->output = {b.rows, b.columns, kChannelBlock};
    l->input_floats = l->in_place ? 0 : l->input.rows * l->input.columns * l->input.width;
    l->output_floats = l->staged ? b.rows * b.columns * kChannelBlock : 0;
    return l->floats = l->input_floats + l->output_floats + l->outputs * taps * l->input.width;
  };
  while (l->outputs > 16 && l->outputs * taps * l->input.width > kTarget) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > 2 * kTarget && b.rows * p.h.stride > 2 * span + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > 2 * kTarget && p.h.out == 1 && b.columns > 256 + 2 * (p.w.kernel - 1) * p.w.dilation)
    b.columns = round_up(ceil_div(b.columns, 2), 16);
  while (floats() > work.scratch && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > work.scratch && l->outputs > 4) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > work.scratch && b.columns > 1) b.columns = ceil_div(b.columns, 2);
  if (floats() > work.scratch) return false;
  b.rows = ceil_div(p.h.out, ceil_div(p.h.out, b.rows));
  divide_positions(p, threads, l);
  floats();
  for (int64_t kh = 0; kh < p.h.kernel; kh++)
    for (int64_t kw = 0; kw < p.w.kernel; kw++)
      for (int64_t c = 0; c < l->input.width; c += lanes)
        l->slots.push_back(static_cast<int32_t>((kh * p.h.dilation * l->input.columns + kw * p.w.dilation) * l->input.width +
                                                (l->in_place ? std::min(c, p.in_channels - lanes) : c)));
  return true;
}

bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, PanelsLayout* l) {
  // The positions stay in the L2 cache, and a tile reads those of a run of the input from the L1 cache. The copies of kGradWeightRun
  // positions fit the smallest scratch, 32,768 doubles.
  constexpr int64_t kOutputs = 128, kChannels = 288, kPositions = 2 * kGradWeightRun;
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  const auto readable = [](const Strides& s, bool steps) { return s.c == 1 || (s.w == 1 && !steps); };
  if (depthwise(p) || !one_tap(p.h) || !one_tap(p.w) || !readable(xs, p.w.stride > 1) || !readable(gs, false)) return false;
  if (p.in_channels < lanes || p.out_channels < kLeastOutputs) return false;
  const int64_t by_c = ceil_div(p.in_channels, kChannels), blocks = ceil_div(p.out_channels, kOutputs);
  // As many blocks of output channels as threads can share evenly.
  const int64_t even = round_up(blocks, threads);
  const bool shares = p.groups * by_c * blocks % threads != 0 && p.out_channels >= kLeastOutputs * even;
  l->outputs = round_up(ceil_div(p.out_channels, shares ? even : blocks), 8);
  l->channels = round_up(ceil_div(p.in_channels, by_c), lanes);
  // Pixels are read in place where the L2 cache keeps a block of them and the next. The more positions, the less often sums are read.
  constexpr int64_t kManyPositions = 2 * kPositions, kWays = 8;
  const int64_t cache = 2 * work.scratch, line = floats_worth(16, work);
  // Tells whether pixels so far apart stay in a cache: those that are a power of two apart lie in few sets, of 8 ways.
  const auto stays = [&](int64_t apart, int64_t positions, int64_t ways, int64_t way) {
    return positions * std::min(apart & -apart, way) <= ways * way;
  };
  const auto in_place = [&](int64_t positions) {
    if (xs.c != 1 || gs.c != 1 || 2 * positions * (l->outputs + l->channels) > cache) return false;
    for (const int64_t apart : {xs.w * p.w.stride, gs.w}) {
      if (!stays(apart, positions, kWays / 2, cache / kWays)) return false;
      // Tiles of vectors that are shorter than a line read more lines for each product, which the L1 cache, of 4 KiB a way, must keep.
      if (lanes < line && !stays(apart, kPositions, kWays, floats_worth(1024, work))) return false;
    }
    return true;
  };
  l->in_place = in_place(kPositions);
  Block& b = l->block;
  const auto positions = [&](int64_t most) {
    b = {1, even_run(p.w.out, most), 1};
    b.rows = even_run(p.h.out, std::max<int64_t>(1, most / b.columns));
  };
  const auto floats = [&] {
    l->input_floats = l->in_place ? 0 : panel_pixels(b.rows * b.columns) * l->channels;
    // What a vector writes beyond the last output channel.
    l->output_floats = l->in_place ? 0 : panel_pixels(b.rows * b.columns) * l->outputs + lanes;
    return l->floats = l->input_floats + l->output_floats;
  };
  positions(in_place(kManyPositions) ? kManyPositions : kPositions);
  if (floats() > work.scratch) positions(kGradWeightRun);
  floats();
  // Runs of 128 take 3 to 5 % less time than runs of 64 (AMD EPYC of Zen 4, AVX-512), and brgemm's products are as long. Of few
  // positions they would be most of a sum, and round more than PyTorch's.
  l->run = std::clamp(p.batch * p.h.out * p.w.out / 4, kGradWeightRun, kPositions);
  // The parts of the weight are fewer numbers than those that are read.
  const int64_t numbers = p.batch * p.groups * p.h.out * p.w.out * (p.in_channels + p.out_channels);
  const int64_t weights = p.groups * p.in_channels * p.out_channels;
  const int64_t image_blocks = p.batch * ceil_div(p.h.out, b.rows) * ceil_div(p.w.out, b.columns);
  const int64_t most = std::max<int64_t>(1, std::min(numbers / weights / 2, image_blocks));
  l->parts = 1;
  // A few tasks that the threads cannot share evenly are divided once more.
  const int64_t tasks = l->tasks(p);
  if (tasks < 8 * threads) l->parts = std::min(threads / std::gcd(tasks, threads), most);
  // The sums of tasks that take turns at each block of positions fill a quarter of the L2 cache at most, or what copies leave of the
  // scratch. Else they lie in one array, and so they do where tasks that wait for their turn would copy the same pixels again.
  const int64_t room = std::min(cache / 4, work.scratch - l->floats), fit = std::min(room / l->sums_floats(), l->tasks(p));
  l->inside = l->parts == 1 && fit > 0 && (l->in_place || fit == l->tasks(p));
  l->together = l->inside ? fit : l->tasks(p);
  if (l->inside) l->floats += l->together * l->sums_floats();
  return true;
}

}  // namespace groupwise
