#include "kernels/stem/layout.h"

namespace groupwise {

bool lay_out_stem(const Correlation& c, int64_t lanes, int64_t threads, StemLayout* l) {
  // The floats of a block's input and staged outputs, which leave room for the tensors in the L2 cache.
  const int64_t kTarget = kScratchFloats / 8;
  const Phase& w = c.w.front();
  const int64_t taps = c.in_channels * c.h.taps * w.taps, most = stem_pixels_most(lanes, 1);
  l->staged = c.output_strides.c != 1;
  l->outputs = round_up(c.out_channels, lanes);
  l->weight_floats = taps * l->outputs;
  l->tap_numbers = round_up(2 * taps, 16);
  Block& b = l->block;
  b = {std::max<int64_t>(1, c.h.out), w.out, 1};
  const auto floats = [&] {
    Plane& p = l->plane;
    // A single column of outputs reads neighbours, whatever its stride.
    p.stride = w.out == 1 ? 1 : w.stride;
    p.low_h = c.h.low;
    p.low_w = w.low;
    p.rows = (b.rows - 1) * c.h.stride + c.h.span() + 1;
    // The last tile of a row reads beyond its end.
    p.phase = b.columns + most + w.span() / p.stride + 1;
    p.padded = b.columns + w.span() / p.stride;
    p.row = round_up(p.phase * p.stride, lanes);
    p.channel = p.rows * p.row;
    p.wide = b.columns == w.out;
    p.whole = false;
    l->input_floats = round_up(c.in_channels * p.channel, 16);
    l->stage_pixel = l->outputs;
    l->stage_row = b.columns * l->stage_pixel;
    return l->floats = l->input_floats + l->tap_numbers + (l->staged ? b.rows * l->stage_row : 0);
  };
  // A block of fewer rows than the kernel copies most of its input again.
  while (floats() > kTarget && b.rows * c.h.stride > 2 * c.h.span() + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kTarget && c.h.out == 1 && b.columns > 4 * w.span() + 16 * most) b.columns = ceil_div(b.columns, 2);
  while (floats() > kScratchFloats && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > kScratchFloats && b.columns > most) b.columns = ceil_div(b.columns, 2);
  if (floats() > kScratchFloats) return false;
  const auto idle = [&] { return threads > 1 && uneven(l->tasks(c), threads, 2); };
  while (idle() && b.rows * c.h.stride > c.h.span() + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (idle() && c.h.out == 1 && b.columns > 2 * w.span() + 8 * most) b.columns = ceil_div(b.columns, 2);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  l->columns.clear();
  for (int64_t t = 0; t < w.taps; t++) {
    const int64_t x = t * w.spacing;
    l->columns.push_back(static_cast<int32_t>(x % l->plane.stride * l->plane.phase + x / l->plane.stride));
  }
  return true;
}

}  // namespace groupwise
