#include "kernels/pixels/layout.h"

namespace groupwise {

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

}  // namespace groupwise
