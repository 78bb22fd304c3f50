#include "kernels/brgemm/layout.h"

#include "request.h"

namespace groupwise {

GradWeight with_fewer_turned(const GradWeight& work) {
  const Problem& p = work.problem;
  const bool flat = p.h.out == 1 && p.h.in == 1 && one_tap(p.h) && one_tap(p.w) && p.w.in == p.w.out;
  const bool pixels = work.input_strides.c == 1 && work.grad_output_strides.c == 1;
  return flat && pixels && p.in_channels < p.out_channels ? exchanged(work) : work;
}

namespace {

// Tells whether outputs have one tap each and follow each other in memory, row after row, and whether their planes fill the vectors
// of products. If not, several samples take less time as rows of pixels, although their weights are packed first (AMD EPYC of Zen 4,
// 2 threads, 1024 to 2048 channels, ms by planes | by pixels: 2, 3 and 8 samples of 7x7, whose last vectors are 6 % full, 3.0 | 2.9,
// 4.5 | 3.9 and, to 768 channels, 4.1 | 3.2; 14x14, of 4 in 16 lanes, 512 channels, 8 samples 4.1 | 4.3).
bool suits_planes(const CorrelationShape& c, int64_t lanes) {
  const Phase &h = c.h, &w = c.w.front();
  const bool follow = h.taps == 1 && w.taps == 1 && h.step == 1 && w.step == 1 && h.first == 0 && w.first == 0 &&
                      (h.out == 1 || c.output_strides.h == w.out);
  const int64_t pixels = h.out * w.out;
  return follow && (c.batch == 1 || round_up(pixels, lanes) * 10 <= pixels * 11);
}

}  // namespace

bool lay_out_brgemm(const Correlation& c, int64_t lanes, int64_t threads, BrgemmLayout* l) {
  // Rows of few pixels and output channels are joined: their products would be mostly the cost of the call. Elsewhere the
  // pixels between two rows cost more.
  constexpr int64_t kWide = 28, kNarrow = 16;
  // A cache line; the least output channels, and the least pixels, of a thread that shares them.
  constexpr int64_t kLine = 16, kLeastOutputs = 64, kLeastPixels = 16;
  const Phase& front = c.w.front();
  const int64_t stride = front.stride, out_w = widest(c.w), step = front.step;
  bool single = c.h.taps <= 1, padded = false;
  for (const Phase& w : c.w) {
    single &= w.taps <= 1;
    padded |= w.taps > 0 && (w.low < 0 || (w.out - 1) * w.stride + w.low >= w.in);
  }
  padded |= c.h.taps > 0 && (c.h.low < 0 || (c.h.out - 1) * c.h.stride + c.h.low >= c.h.in);
  const bool in_place = c.h.out == 1 && reads_once(c.h) && reads_once(front);
  l->planes = c.w.size() == 1 && c.input_strides.w == 1 && c.output_strides.w == 1 &&
              (c.input_strides.c != 1 || c.output_strides.c != 1) && !padded && suits_planes(c, lanes);
  l->packs_input = l->planes ? !in_place : !single || padded || c.input_strides.c != 1;
  l->packs_weight = l->planes ? c.weight_strides.c != 1 : !(single && c.weight_strides.o == 1);
  const bool pixels_out = c.output_strides.c == 1;
  l->joined = l->packs_input && !l->planes && c.w.size() == 1 && step == 1 && stride == 1 && c.h.stride == 1 && out_w < kWide &&
              c.out_channels <= kNarrow;
  l->staged = !l->planes && (!pixels_out || l->joined);
  // Weights that stay in the cache: a product of few input channels takes as many output channels as it can, as the cost of a call
  // is large beside it.
  constexpr int64_t kFewInputs = 64, kManyOutputs = 256;
  int64_t weights = 0;
  for (const Phase& w : c.w) weights += c.h.taps * w.taps * c.in_channels * c.out_channels;
  l->channels_inside = weights <= kScratchFloats / 4;
  const bool many = !l->planes && single && l->channels_inside && c.in_channels <= kFewInputs;
  const auto take = [&](int64_t task_outputs, int64_t outputs) {
    l->task_outputs = task_outputs;
    l->outputs = outputs;
    l->rows = outputs <= 32 ? 2 * kProductRows : kProductRows;
    l->weight_floats = 0;
    if (!l->packs_weight) return;
    for (const Phase& w : c.w)
      l->weight_floats += c.h.taps * w.taps * c.in_channels * (l->planes ? c.out_channels : l->blocks(c) * outputs);
  };
  take(c.out_channels, std::min(round_up(c.out_channels, l->planes ? 1 : lanes), many ? kManyOutputs : kProductChannels));
  l->low_w = lowest(c.w);
  // Where pixels are turned, they are copied in whole vectors.
  const int64_t width = c.input_strides.c == 1 && c.input_strides.w != 1 ? c.in_channels : round_up(c.in_channels, lanes);
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, 1};
  const auto floats = [&] {
    l->input = {(b.rows - 1) * c.h.stride + c.h.span() + 1, (b.columns - 1) * stride + reach(c.w) + 1, width};
    // A vector beyond the last pixel is for copies of whole vectors.
    const int64_t pixels = l->planes ? b.rows * b.columns : l->input.rows * l->input.columns;
    const int64_t run = even_run(c.in_channels, c.longest_run), room = kScratchFloats - 2 * lanes;
    l->gathered = std::min(c.in_channels, std::max<int64_t>(1, room / (pixels * run)) * run);
    l->input_floats = l->packs_input ? round_up(pixels * (l->planes ? l->gathered : width) + lanes, 16) : 0;
    l->output = {b.rows, l->joined ? l->input.columns : b.columns * step, round_up(c.out_channels, lanes)};
    const int64_t output = l->staged ? l->output.rows * l->output.columns * l->output.width : 0;
    return l->floats = l->input_floats + output;
  };
  const int64_t most = l->planes ? kScratchFloats : kScratchFloats / 2;
  while (floats() > most && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > most && b.columns > 16) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  const auto idle = [&] { return threads > 1 && uneven(l->tasks(c), threads); };
  // Threads share the longer side of products of planes, output channels or pixels. All of them read the shorter one.
  const bool shared = l->planes ? idle() && c.out_channels > c.h.out * out_w : c.groups == 1 && few_pixels(c, threads);
  if (threads > 1 && shared && !l->staged && c.out_channels >= kLeastOutputs * threads) {
    // Each thread reads its own weights, and all pixels.
    const int64_t each = round_up(ceil_div(c.out_channels, threads), kLine);
    take(each, round_up(even_run(each, many ? kManyOutputs : kProductChannels), kLine));
    return true;
  }
  while (idle() && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  if (idle() && c.h.out == 1 && b.columns == out_w && !l->planes && !l->staged && out_w >= kLeastPixels * threads) {
    // Threads share the pixels of an image evenly: where those are rows one after the other, each gets as many of them.
    b.columns = ceil_div(out_w, threads);
    floats();
    return true;
  }
  while (idle() && b.rows == 1 && b.columns > 16) b.columns = round_up(ceil_div(b.columns, 2), 8);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  return true;
}

bool lay_out(const GradWeight& work, int64_t lanes, int64_t threads, BrgemmGradLayout* l) {
  // Positions of a block, which one product sums: a run, in the words of the other kernels.
  constexpr int64_t kPositions = 128;
  const Problem& p = work.problem;
  const Strides &xs = work.input_strides, &gs = work.grad_output_strides;
  const int64_t taps = p.h.kernel * p.w.kernel;
  const bool inside = p.h.pad == 0 && p.w.pad == 0 && p.h.out <= p.h.in && p.w.out <= p.w.in;
  const bool flat = taps == 1 && p.h.stride == 1 && p.w.stride == 1 && inside;
  const bool row = p.h.out == 1;
  l->in_place = flat && row && xs.c == 1;
  l->gathered = !flat;
  l->transposed = !(gs.w == 1 && row);
  l->outputs = std::min(p.out_channels, kProductChannels);
  // Pixels that are read in place meet grad_output, which is turned once for all of their channels.
  constexpr int64_t kManyInputs = 256;
  l->channels = std::min(p.in_channels, l->in_place ? kManyInputs : kProductChannels);
  Block& b = l->block;
  b.groups = 1;
  b.columns = even_run(p.w.out, kPositions);
  b.rows = even_run(p.h.out, std::max<int64_t>(1, kPositions / b.columns));
  const auto floats = [&] {
    l->input = {(b.rows - 1) * p.h.stride + (p.h.kernel - 1) * p.h.dilation + 1,
                (b.columns - 1) * p.w.stride + (p.w.kernel - 1) * p.w.dilation + 1, round_up(l->channels, lanes)};
    l->input_floats = l->in_place ? 0 : l->input.rows * l->input.columns * l->input.width;
    l->gather_floats = l->gathered ? round_up(b.rows * b.columns * p.w.kernel * l->channels, 16) : 0;
    l->output_floats = l->transposed ? round_up(b.rows * b.columns, lanes) * l->outputs : 0;
    return l->floats = l->input_floats + l->gather_floats + l->output_floats + l->outputs * l->channels * taps;
  };
  while (floats() > kScratchFloats && l->channels > 16) l->channels = round_up(ceil_div(l->channels, 2), 16);
  while (floats() > kScratchFloats && l->outputs > 8) l->outputs = round_up(ceil_div(l->outputs, 2), 8);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.columns > 8) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  divide_positions(p, threads, l);
  return true;
}

}  // namespace groupwise
