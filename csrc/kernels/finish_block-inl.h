// Finishes the outputs of a task, run by run: neighbours are columns of a channel, or channels of a pixel.
#pragma once
#include "kernels/finish.h"

namespace groupwise::GW_TARGET {

void finish_block(const Correlation& c, const Finished& b) {
  if (!c.epilogue) return;
  const Strides& s = c.output_strides;
  const int64_t row = c.h.step * s.h;
  Real* y = c.output + b.n * s.n + b.channel * s.c + (c.h.first + b.row * c.h.step) * s.h + b.column * s.w;
  if (s.w == 1) {
    for (int64_t channel = 0; channel < b.channels; channel++) finish_runs(c, y + channel * s.c, b.rows, row, b.columns);
  } else {
    for (int64_t r = 0; r < b.rows; r++) finish_runs(c, y + r * row, b.columns, s.w, b.channels);
  }
}

}  // namespace groupwise::GW_TARGET
