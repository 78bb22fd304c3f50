// Convolutions of doubles have no activation. A residual is what earlier planes of a volume left.
#include "kernels/finish.h"

namespace groupwise::GW_TARGET {

void finish_block(const Correlation& c, const Finished& b) {
  if (!c.epilogue || !c.epilogue->residual) return;
  const Strides& s = c.output_strides;
  const int64_t row = c.h.step * s.h,
                first = b.n * s.n + b.channel * s.c + (c.h.first + b.row * c.h.step) * s.h + b.column * s.w;
  const bool channels_last = s.w != 1;
  // Runs of neighbours: rows of a channel, or pixels.
  const int64_t lines = channels_last ? b.columns : b.channels, line = channels_last ? s.w : s.c;
  const int64_t count = channels_last ? b.channels : b.columns;
  for (int64_t i = 0; i < lines; i++)
    for (int64_t r = 0; r < b.rows; r++) {
      Real* y = c.output + first + i * line + r * row;
      const Real* residual = c.epilogue->residual + (y - c.output);
      for (int64_t v = 0; v < count; v += kLanes)
        store_some(y + v, load_some(y + v, count - v) + load_some(residual + v, count - v), count - v);
    }
}

}  // namespace groupwise::GW_TARGET
