#include "products.h"

#include "kernels/narrow/slides.h"

namespace groupwise {
namespace {

// Returns the products of one axis in strips of blocks; a strip computes a whole number of `unit` outputs.
int64_t axis_products(const Phase& s, int64_t block, int64_t strip, int64_t unit) {
  int64_t products = 0;
  for (int64_t at = 0; at < s.out; at += block) {
    const int64_t end = std::min(s.out, at + block);
    for (int64_t first = at; first < end; first += strip) {
      const int64_t outputs = std::min(strip, end - first);
      products += round_up(outputs, unit) * clipped(s, first, outputs).taps;
    }
  }
  return products;
}

// Returns the products of one axis of a weight's gradient. Tiles of `tile` taps sum a whole number of `unit` positions, those
// which their taps read inside the input if `clip`.
int64_t axis_products(const Axis& a, int64_t block, bool clip, int64_t tile, int64_t unit) {
  int64_t products = 0;
  for (int64_t at = 0; at < a.out; at += block) {
    const int64_t outputs = std::min(block, a.out - at);
    if (!clip) products += a.kernel * round_up(outputs, unit);
    for (int64_t tap = 0; clip && tap < a.kernel; tap += tile) {
      const int64_t taps = std::min(tile, a.kernel - tap);
      const Range there =
          outputs_inside(at * a.stride - a.pad + tap * a.dilation, (taps - 1) * a.dilation, a.stride, outputs, a.in);
      products += taps * std::min(round_up(outputs, unit), round_up(there.last - there.first, unit));
    }
  }
  return products;
}

// Returns the pairs of an output and a tap that meets the input, of so many outputs.
int64_t pairs_inside(const Axis& a, int64_t outputs) {
  int64_t found = 0;
  for (int64_t tap = 0; tap < a.kernel; tap++) {
    const Range there = outputs_inside(tap * a.dilation - a.pad, 0, a.stride, outputs, a.in);
    found += there.last - there.first;
  }
  return found;
}

}  // namespace

int64_t executed_products(const CorrelationShape& c, const CorrelationLayout& l, int64_t lanes) {
  const int64_t channels = c.batch * c.groups * c.in_channels * c.out_channels;
  if (l.whole == Whole::sum) return channels * axis_products(c.h, 1, 1, 1) * c.w.front().taps;
  if (l.whole == Whole::spread) return channels * c.h.out * c.w.front().out;
  int64_t row = 0;
  for (const Phase& s : c.w) row += axis_products(s, l.block.columns, l.strip.columns, lanes);
  return channels * axis_products(c.h, l.block.rows, l.strip.rows, 1) * row;
}

int64_t executed_products_narrow(const CorrelationShape& c, const ChannelsLayout& l, int64_t lanes) {
  const int64_t unit = slides(c, lanes, l.ahead) || slides_in_phases(c) ? 1 : kPixelTile;
  int64_t row = 0;
  for (const Phase& s : c.w) row += axis_products(s, l.block.columns, unit, unit);
  return c.batch * c.in_channels * vectors_of(c.groups, c.out_channels, lanes) * lanes * axis_products(c.h, 1, 1, 1) * row;
}

int64_t executed_products_groups(const CorrelationShape& c, const ChannelsLayout& l, int64_t lanes, bool dots) {
  const int64_t pixels = tile_pixels(c, lanes, dots), outputs = round_up(c.out_channels, dots ? 4 : lanes);
  int64_t products = 0;
  // Large images are all but free of borders, and have too many tiles to count.
  constexpr int64_t kLarge = 1 << 22;
  if (c.h.out * widest(c.w) > kLarge) {
    for (const Phase& w : c.w) products += c.h.out * w.out * c.h.taps * w.taps;
    return c.batch * c.groups * c.in_channels * outputs * products;
  }
  for (int64_t row = 0; row < c.h.out; row += l.block.rows)
    for (int64_t column = 0; column < widest(c.w); column += l.block.columns)
      each_strip(c, l.block, l.strip, row, column,
                 [&](const Phase& h, const Phase& w, int64_t, int64_t rows, int64_t, int64_t columns) {
                   if (!l.by_rows || (w.taps < 2 && outputs <= kGroupBlock)) {
                     products += round_up(rows * columns, pixels) * h.taps * w.taps;
                     return;
                   }
                   const RowTiles tiles = row_tiles(rows, columns, outputs > kGroupBlock ? 2 : 1);
                   for (int64_t r = 0; r < rows; r += tiles.rows) {
                     const int64_t some = tiles.rows_at(r, rows);
                     products += some * round_up(columns, tiles.pixels) * clipped(c.h, row + r, some).taps * w.taps;
                   }
                 });
  return c.batch * c.groups * c.in_channels * outputs * products;
}

int64_t executed_products(const GradWeightShape& work, const GradWeightLayout& l, int64_t lanes) {
  const Problem& p = work.problem;
  return p.batch * p.groups * p.in_channels * p.out_channels * axis_products(p.h, l.block.rows, l.clip, 3, 1) *
         axis_products(p.w, l.block.columns, l.clip, 4, lanes);
}

int64_t executed_products(const GradWeightShape& work, const GradWeightChannelsLayout& l, int64_t lanes) {
  const Problem& p = work.problem;
  const int64_t channels = l.depthwise ? round_up(p.groups, lanes) : p.groups * p.out_channels * round_up(p.in_channels, lanes);
  return p.batch * channels * axis_products(p.h, l.block.rows, l.clip, 3, 1) *
         axis_products(p.w, l.block.columns, l.clip, 4, 1);
}

int64_t executed_products(const GradWeightShape& work, const PanelsLayout& l, int64_t lanes) {
  const Problem& p = work.problem;
  const int64_t channels = p.in_channels / l.channels * l.channels + round_up(p.in_channels % l.channels, lanes);
  // Blocks of output channels fill whole tiles of 8 with vectors of 16 lanes, and of 4 with others.
  return p.batch * p.groups * round_up(p.out_channels, lanes >= 16 ? 8 : 4) * channels * p.h.out * p.w.out;
}

int64_t executed_products(const GradWeightShape& work, const GradWeightNarrowLayout& l, int64_t lanes) {
  const Problem& p = work.problem;
  const int64_t taps = l.rows ? 1 : 3;
  return p.batch * p.in_channels * vectors_of(p.groups, p.out_channels, lanes) * lanes *
         axis_products(p.h, l.block.rows, true, taps, 1) * axis_products(p.w, l.block.columns, true, taps, 1);
}

int64_t executed_products(const CorrelationShape& c, const BrgemmLayout& l) {
  int64_t products = 0;
  for (int64_t row = 0; row < c.h.out; row += l.block.rows) {
    const int64_t rows = std::min(l.block.rows, c.h.out - row), taps = clipped(c.h, row, rows).taps;
    for (const Phase& w : c.w)
      for (int64_t column = 0; column < w.out; column += l.block.columns) {
        const int64_t columns = std::min(l.block.columns, w.out - column);
        const int64_t pixels = l.joined ? (rows - 1) * l.input.columns + columns : rows * columns;
        products += pixels * taps * clipped(w, column, columns).taps;
      }
  }
  return c.batch * c.groups * c.in_channels * c.out_channels * products;
}

int64_t executed_products(const CorrelationShape& c, const GemmLayout& l) {
  return c.batch * c.groups * c.in_channels * round_up(c.out_channels, l.lanes) * c.h.out * c.w.front().out;
}

int64_t executed_products(const CorrelationShape& c, const StemLayout& l, int64_t lanes) {
  const Phase& w = c.w.front();
  int64_t row = 0;
  for (int64_t o = 0; o < c.out_channels; o += kStemVectors * lanes) {
    const int64_t outputs = std::min(kStemVectors * lanes, l.outputs - o);
    const int64_t most = stem_pixels_most(lanes, outputs / lanes);
    for (int64_t column = 0; column < w.out; column += l.block.columns) {
      const int64_t columns = std::min(l.block.columns, w.out - column);
      row += outputs * round_up(columns, stem_pixels(columns, most)) * clipped(w, column, columns).taps;
    }
  }
  return c.batch * c.groups * c.in_channels * axis_products(c.h, 1, 1, 1) * row;
}

int64_t executed_products(const GradWeightShape& work, const BrgemmGradLayout& l, int64_t) {
  const Problem& p = work.problem;
  return p.batch * p.groups * p.in_channels * p.out_channels * p.w.kernel * p.w.out *
         axis_products(p.h, l.block.rows, true, 1, l.block.rows);
}

int64_t executed_products(const LowGrouped& c, int64_t lanes) {
  // AMX multiplies the padding too.
  if (c.rows > 0) return c.batch * c.vectors(lanes) * lanes * c.inputs * c.taps() * c.h.out * c.w.out;
  const int64_t pixels = c.group == 1 ? low_pixels(lanes) : kGroupedPixels;
  const int64_t outputs = c.group == 1 ? round_up(c.channels, 2 * lanes) : c.vectors(lanes) * lanes;
  return c.batch * outputs * c.inputs * pairs_inside(c.h, c.h.out) * pairs_inside(c.w, round_up(c.w.out, pixels));
}

int64_t executed_products(const LowGradient& g) {
  const Problem& p = g.problem;
  const int64_t vectors = ceil_div(g.shared ? p.groups * p.out_channels : p.out_channels, g.lanes);
  const int64_t channels = (g.shared ? 1 : p.groups) * vectors * g.lanes * p.in_channels;
  return p.batch * p.h.out * p.w.out * channels * g.taps();
}

}  // namespace groupwise
