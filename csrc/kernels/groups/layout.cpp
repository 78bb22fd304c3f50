#include "kernels/channels_layout.h"

namespace groupwise {

namespace {

// Tiles take pixels of a strip as one row, in which only the last tile may be part empty.
Strip strip_of(const CorrelationShape& c, int64_t lanes, bool dots) {
  const int64_t pixels = tile_pixels(c, lanes, dots), sums = pixels == 8 ? 8 : 12;
  const auto cost = [&](int64_t rows, int64_t columns) { return ceil_div(rows * columns, pixels) * sums / 2; };
  return cheapest_strip(c, {1, 2, 3, 4}, {2, 3, 6, 12}, cost);
}

// Tells whether tiles share the inputs of neighbouring taps, which takes 32 registers and rows that fill a tile.
bool shares_taps(const CorrelationShape& c, int64_t lanes) {
  constexpr int64_t kLeast = 7;
  bool shares = false;
  for (const Phase& w : c.w) {
    if (w.taps < 2) continue;
    if (w.stride > 2 || w.spacing != 1 || w.out < kLeast || worth_clipping(w)) return false;
    shares = true;
  }
  return shares && lanes >= 16;
}

// `packs`: the weights are packed in scratch; dot products read them in place.
bool lay_out(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads, bool packs,
             ChannelsLayout* l) {
  const int64_t out_w = widest(c.w);
  l->kernel_h = kernel_h;
  l->kernel_w = kernel_w;
  l->low_w = lowest(c.w);
  l->staged = c.output_strides.c != 1;
  l->blocks = c.groups;
  // One tap reads each input once, or once for 16 outputs: a copy would take as long as the sums.
  const Phase& w = c.w.front();
  l->in_place = c.w.size() == 1 && c.h.taps == 1 && w.taps == 1 && c.input_strides.c == 1 && c.h.low >= 0 && w.low >= 0 &&
                (c.h.out - 1) * c.h.stride + c.h.low < c.h.in && (w.out - 1) * w.stride + w.low < w.in;
  // All weights are packed once for all samples, if that leaves room to the tensors. It saves nothing for one sample.
  const int64_t block_floats = group_block_floats(c, kernel_h, kernel_w);
  const int64_t blocks = ceil_div(c.out_channels, kGroupBlock);
  l->by_rows = packs && shares_taps(c, lanes);
  const int64_t together = l->by_rows ? std::min<int64_t>(blocks, 2) : 1;
  l->weight_floats =
      packs ? block_floats * (block_floats * blocks <= c.scratch / (c.batch > 1 ? 2 : 4) ? blocks : together) : 0;
  l->strip = l->by_rows ? Strip{std::max<int64_t>(1, c.h.out), out_w} : strip_of(c, lanes, !packs);
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), out_w, 1};
  const auto floats = [&] {
    // The clipped taps of a strip read no further outside the input than its own outputs are apart.
    const int64_t stride = c.w.front().stride;
    l->input = {
        std::min((b.rows - 1) * c.h.stride + c.h.span() + 1, c.h.in + 2 * (std::min(l->strip.rows, b.rows) - 1) * c.h.stride),
        std::min((b.columns - 1) * stride + reach(c.w) + 1,
                 c.w.front().in + 2 * (std::min(l->strip.columns, b.columns) - 1) * stride),
        round_up(c.in_channels, lanes)};
    l->output = {b.rows, b.columns * c.w.front().step, round_up(c.out_channels, lanes)};
    // The last tile may read beyond the last row.
    const int64_t beyond = l->by_rows ? 16 * stride * l->input.width : 0;
    l->input_floats = l->in_place ? 0 : l->input.rows * l->input.columns * l->input.width + beyond;
    const int64_t output = l->staged ? l->output.rows * l->output.columns * l->output.width : 0;
    return l->floats = l->input_floats + l->weight_floats + output;
  };
  // Every block packs the weights again, so it should not be small; but one that fills the L2 cache leaves no room for the
  // tensors.
  const auto halve = [&] {
    if (b.rows > 1) {
      b.rows = ceil_div(b.rows, 2);
    } else {
      b.columns = ceil_div(b.columns, 2);
    }
  };
  const auto divisible = [&](int64_t outputs) { return c.h.out > 1 ? b.rows > 1 : b.columns > outputs + 2 * reach(c.w); };
  while (floats() > c.scratch / 3 && b.rows * b.columns > 1024 && divisible(1024)) halve();
  while (floats() > c.scratch && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > c.scratch && b.columns > 6) b.columns = ceil_div(b.columns, 2);
  if (floats() > c.scratch) return false;
  while (threads > 1 && uneven(l->tasks(c), threads, 2) &&
         (c.h.out == 1 || b.rows * c.h.stride > std::min(c.h.span(), c.h.in) + 1) && divisible(96))
    halve();
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  return true;
}

}  // namespace

bool lay_out_groups(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                    ChannelsLayout* l) {
  return lay_out(c, kernel_h, kernel_w, lanes, threads, true, l);
}

bool lay_out_dots(const CorrelationShape& c, int64_t kernel_h, int64_t kernel_w, int64_t lanes, int64_t threads,
                  ChannelsLayout* l) {
  return lay_out(c, kernel_h, kernel_w, lanes, threads, false, l);
}

}  // namespace groupwise
