#include "kernels/planar/layout.h"

#include <algorithm>
#include <numeric>

namespace groupwise {

namespace {

// Avoids channels that start a multiple of 4 KiB apart, which would all share the same cache sets.
int64_t channel_floats(int64_t floats) { return floats % 1024 == 0 ? floats + 16 : floats; }

// The floats up to which a task computes several small images, so that they leave room in the L1 cache (14x14 depthwise, one
// core, ms: one image 0.102, floats of 1024 0.093, 2048 0.091, 4096 0.089, 8192 0.090).
constexpr int64_t kSmall = 4096;

// Tells whether tiles can read the tensor: it is one row, of which one tap reads all, and no vector reads beyond its end. The
// last vectors of a row start early rather than end late where there are three of them and no earlier sums to add to.
bool reads_in_place(const CorrelationShape& c, int64_t lanes) {
  const Phase& w = c.w.front();
  const bool one_row = c.h.in == 1 && c.h.out == 1 && c.h.taps == 1 && c.h.low == 0;
  const bool one_tap = c.w.size() == 1 && w.taps == 1 && w.low == 0 && w.stride == 1 && w.out == w.in;
  const bool within = w.out % lanes == 0 || (w.out >= 3 * lanes && c.in_channels <= c.longest_run);
  return one_row && one_tap && within && c.input_strides.w == 1 && c.output_strides.w == 1;
}

// Tells whether tiles can read rows of taps where they are, from blocks of at least `rows` rows: no tap meets padding, and no tile
// reads beyond its outputs.
bool reads_rows_in_place(const CorrelationShape& c, int64_t lanes, int64_t rows) {
  const Phase &h = c.h, &w = c.w.front();
  const auto inside = [](const Phase& s) {
    return s.taps > 0 && s.low >= 0 && (s.out - 1) * s.stride + s.low + s.span() < s.in;
  };
  if (c.w.size() > 1 || w.stride > 1 || w.step > 1 || !inside(h) || !inside(w)) return false;
  if (c.input_strides.w != 1 || c.output_strides.w != 1) return false;
  // Rows a multiple of 4 KiB apart would all share the same cache sets.
  if (c.input_strides.h % 1024 == 0) return false;
  // More outputs than inputs took up to 60 % more time than with a copy, and so did single rows.
  return c.out_channels < 4 && c.out_channels <= c.in_channels && w.out >= lanes && takes_single(c, h, w, rows);
}

// A part of a vector at the end of a row is one masked load with AVX-512; without, it is copied.
bool reads_in_place(const GradWeightShape& work, int64_t lanes) {
  const Problem& p = work.problem;
  return one_tap(p.h) && one_tap(p.w) && p.h.out == 1 && p.w.stride == 1 && (p.w.out % lanes == 0 || lanes >= 16) &&
         work.input_strides.w == 1 && work.grad_output_strides.w == 1;
}

// Tells whether rows are long enough to be read where they are. Without masks, which vectors of 16 lanes are sure to have, their ends
// take longer than a copy of a short row: of 50 columns by 3 taps a third more time with AVX2, and of 200 half of it. With a stride of 2,
// whose copies are fast, 9 taps of 130 outputs took a third more time with AVX2, and of 160 as much.
bool worth_no_copy(int64_t columns, int64_t stride, int64_t lanes) {
  return lanes >= 16 || columns >= (stride == 2 ? 20 : 12) * lanes;
}

// Tells whether tiles read the taps of a row in place: with masks for the ends many, too, if they are neighbours of which few meet
// padding. Taps of a stride are dealt, and must be neighbours.
bool takes_taps(const Phase& w, int64_t lanes) {
  if (w.stride > 1) return w.stride <= kMostStride && w.spacing == 1 && w.taps <= kFewTaps;
  return w.taps <= kFewTaps || (lanes >= 16 && w.spacing == 1 && w.taps <= kLongestRow && !worth_clipping(w));
}

// Tells whether all phases of the width take turns in a row, and are few enough to be woven.
bool weaves(const std::vector<Phase>& w) {
  const int64_t phases = static_cast<int64_t>(w.size());
  return phases > 1 && phases <= kWovenPhases && phases == w.front().step;
}

// Tells whether tiles weave phases of few neighbouring taps where their rows are.
bool takes_phases(const std::vector<Phase>& w) {
  return weaves(w) && std::ranges::all_of(w, [](const Phase& s) { return s.taps <= kFewTaps && s.spacing == 1; });
}

// Tells whether rows of one channel meet one row of taps each, and are read where they are.
bool takes_lone_rows(const CorrelationShape& c, int64_t lanes) {
  const Phase &h = c.h, &w = c.w.front();
  const bool rows = h.taps == 1 && h.low == 0 && h.stride == 1 && h.step == 1 && h.out <= h.in;
  const bool columns = c.w.size() == 1 ? w.step == 1 && w.taps >= 2 && takes_taps(w, lanes) : takes_phases(c.w);
  return rows && columns && worth_no_copy(w.out, w.stride, lanes) && c.in_channels == 1 && c.out_channels < 4 &&
         c.input_strides.w == 1 && c.output_strides.w == 1;
}

void measure(const CorrelationShape& c, int64_t lanes, CorrelationLayout* l) {
  // A single column of outputs reads neighbours, whatever its stride.
  const int64_t stride = widest(c.w) == 1 ? 1 : c.w.front().stride, columns = round_up(l->block.columns, lanes);
  Plane& p = l->plane;
  p.low_h = c.h.low;
  p.low_w = lowest(c.w);
  // The clipped taps of a strip read no further outside the input than its own outputs are apart.
  p.rows = std::min((l->block.rows - 1) * c.h.stride + c.h.span() + 1,
                    c.h.in + 2 * (std::min(l->strip.rows, l->block.rows) - 1) * c.h.stride);
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
  if (l->in_place) {
    p.channel = c.input_strides.c;
    l->input_floats = 0;
  }
  l->output_floats = l->staged ? l->block.groups * c.out_channels * l->stage.channel : 0;
}

// A tile adds a vector to a sum in four cycles, and to two sums a cycle.
constexpr int64_t cycles(int64_t sums) { return std::max<int64_t>(4, sums / 2); }

Strip strip_of(const CorrelationShape& c, int64_t lanes, int64_t apart) {
  const bool single = takes_single(c, c.h, c.w.front(), c.h.out),
             fours = c.out_channels >= 4 && !(single && prefers_single(c, c.h));
  // Returns the cycles of `n` rows or vectors in tiles of at most `most`, each of which has `sums` sums a row or vector.
  const auto tiled = [](int64_t n, int64_t most, int64_t sums) {
    return n / most * cycles(most * sums) + (n % most ? cycles(n % most * sums) : 0);
  };
  const auto cost = [&](int64_t rows, int64_t columns) {
    const int64_t vectors = ceil_div(columns, lanes);
    if (fours) return std::min(rows * tiled(vectors, 3, 4), vectors * tiled(rows, 3, 4));
    if (single && rows >= 4 * apart) return vectors * ceil_div(rows, 2);
    const int64_t together = ceil_div(rows, apart), turns = std::min(rows, apart);
    return turns * (vectors / 3 * tiled(together, kRowTile, 3) + (vectors % 3 ? tiled(together, kRowTile, vectors % 3) : 0));
  };
  return cheapest_strip(c, {apart, 2 * apart, 3 * apart, 4 * apart}, {lanes, 2 * lanes, 3 * lanes}, cost);
}

// Tells whether tiles can weave the phases of the width: those of one input channel, of few rows of taps, none of which is left
// out for small parts of a row.
bool takes_woven(const CorrelationShape& c, const Strip& strip) {
  return weaves(c.w) && c.output_strides.w == 1 && c.in_channels == 1 && c.out_channels < 4 && c.h.stride == 1 &&
         c.h.spacing == 1 && c.h.taps <= kWovenTaps && strip.columns >= widest(c.w);
}

// Tells whether rows of the image, and of the kernel, follow each other in memory and meet one another whole.
Whole takes_whole(const CorrelationShape& c) {
  const Phase &h = c.h, &w = c.w.front();
  const auto rows = [](const Strides& s, int64_t height, int64_t width) { return s.w == 1 && (height == 1 || s.h == width); };
  if (c.w.size() > 1 || c.weight_strides.w != 1 || c.weight_strides.h != w.taps || h.step != 1) return Whole::no;
  if (w.out == 1 && w.low == 0 && w.taps == w.in && w.spacing == 1 && w.index_step == 1 && h.spacing == 1 &&
      h.index_step == 1 && w.taps * h.taps >= 4 && rows(c.input_strides, h.in, w.in))
    return Whole::sum;
  const auto spread = [](const Phase& s) {
    return s.in == 1 && s.out == s.taps && s.low == 1 - s.taps && s.spacing == 1 && s.index_step == -1;
  };
  return spread(h) && spread(w) && rows(c.output_strides, h.out, w.out) ? Whole::spread : Whole::no;
}

}  // namespace

bool lay_out(const CorrelationShape& c, int64_t lanes, int64_t threads, CorrelationLayout* l) {
  *l = {};
  // A block may fill most of the L2 cache, so an image that fits a quarter of the scratch stays whole.
  const int64_t kTarget = c.scratch / 4;
  l->in_place = reads_in_place(c, lanes);
  const int64_t common = std::gcd(c.h.stride, c.h.spacing);
  l->sharing = {c.h.spacing / common, c.h.stride / common, c.h.spacing * c.h.stride / common};
  const bool channels_last = c.input_strides.w != 1 || c.output_strides.w != 1;
  l->strip = strip_of(c, lanes, l->sharing.apart);
  l->woven = takes_woven(c, l->strip);
  l->staged = !l->woven && (c.w.size() > 1 || c.output_strides.w != 1);
  // What a block reads beside the rows of its outputs.
  const int64_t shared = std::min(c.h.span(), c.h.in);
  Block& b = l->block;
  b.columns = widest(c.w);
  b.rows = std::max<int64_t>(1, c.h.out);
  b.groups = 1;
  l->whole = takes_whole(c);
  if (l->whole != Whole::no) {
    b.groups = c.groups;
    while (l->tasks(c) < 4 * threads && threads > 1 && b.groups > 4) b.groups = ceil_div(b.groups, 2);
    l->input_floats = l->output_floats = 0;
    return true;
  }
  l->lone_rows = takes_lone_rows(c, lanes);
  if (l->lone_rows) {
    l->input_floats = l->output_floats = 0;
    l->strip = {b.rows, b.columns};
    while (2 * b.groups <= c.groups && b.groups * b.rows * b.columns <= floats_worth(kSmall, c) / 2 &&
           l->tasks(c) >= 16 * threads)
      b.groups *= 2;
    while (l->tasks(c) < 4 * threads && threads > 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
    while (l->tasks(c) < 4 * threads && threads > 1 && b.columns > 2 * reach(c.w) + 12 * lanes)
      b.columns = round_up(ceil_div(b.columns, 2), lanes);
    return true;
  }
  const auto floats = [&] {
    measure(c, lanes, l);
    return l->input_floats + l->output_floats;
  };
  if (channels_last) {
    // Neighbouring channels of a channels-last tensor share a cache line of 16 floats. A small block has whole lines of both
    // tensors.
    const int64_t least = std::min(c.groups, std::max<int64_t>(1, 16 / std::max(c.in_channels, c.out_channels)));
    b.groups = std::min(c.groups, ceil_div(16, std::min(c.in_channels, c.out_channels)));
    while (b.groups > least && floats() > kTarget) b.groups = std::max(least, b.groups / 2);
  }
  while (!channels_last && 2 * b.groups <= c.groups && floats() <= floats_worth(kSmall, c) / 2 && l->tasks(c) >= 16 * threads)
    b.groups *= 2;
  // A block of fewer rows than the kernel copies most of its input again.
  while (floats() > kTarget && b.rows * c.h.stride > 2 * shared + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > c.scratch && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > c.scratch && b.columns > 4 * lanes) b.columns = round_up(ceil_div(b.columns, 2), lanes);
  while (floats() > c.scratch && b.groups > 1) b.groups = ceil_div(b.groups, 2);
  if (floats() > c.scratch) return false;
  // Each thread gets at least four tasks.
  while (l->tasks(c) < 4 * threads && threads > 1 && b.rows * c.h.stride > 2 * shared + 1 && b.rows > 1)
    b.rows = ceil_div(b.rows, 2);
  while (l->tasks(c) < 4 * threads && threads > 1 && c.h.out == 1 && b.columns > 2 * reach(c.w) + 12 * lanes)
    b.columns = round_up(ceil_div(b.columns, 2), 3 * lanes);
  b.rows = ceil_div(c.h.out, ceil_div(c.h.out, b.rows));
  floats();
  if (reads_rows_in_place(c, lanes, c.h.out - (ceil_div(c.h.out, b.rows) - 1) * b.rows)) {
    l->in_place = true;
    l->plane.row = c.input_strides.h;
    l->plane.channel = c.input_strides.c;
    l->input_floats = 0;
  }
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

bool takes_lone_rows(const GradWeightShape& work, int64_t lanes) {
  const Problem& p = work.problem;
  return one_tap(p.h) && p.h.stride == 1 && p.w.kernel >= 2 && takes_taps(forward_phase(p.w), lanes) && p.in_channels == 1 &&
         p.out_channels < 4 && worth_no_copy(p.w.out, p.w.stride, lanes) && work.input_strides.w == 1 &&
         work.grad_output_strides.w == 1;
}

bool lay_out(const GradWeightShape& work, int64_t lanes, int64_t threads, GradWeightLayout* l) {
  *l = {};
  const int64_t kTarget = work.scratch / 8;
  const Problem& p = work.problem;
  const int64_t slots = p.in_channels * p.h.kernel * p.w.kernel;
  const bool channels_last = work.input_strides.w != 1 || work.grad_output_strides.w != 1;
  const int64_t span = (p.h.kernel - 1) * p.h.dilation, reach = (p.w.kernel - 1) * p.w.dilation;
  Block& b = l->block;
  b = {p.h.out, p.w.out, 1};
  if (channels_last) b.groups = std::min(p.groups, std::max<int64_t>(1, 16 / std::max(p.in_channels, p.out_channels)));
  l->lone_rows = takes_lone_rows(work, lanes);
  l->in_place = reads_in_place(work, lanes);
  l->clip = !l->lone_rows && (worth_clipping(forward_phase(p.h)) || worth_clipping(forward_phase(p.w)));
  // Only tiles of one output channel load parts of vectors by masks. With a stride each row of taps would read the rows again, which
  // took up to 14 % more time.
  l->rows_in_place = work.grad_output_strides.w == 1 && (p.h.stride == 1 || p.h.kernel == 1) &&
                     ((p.w.out % lanes == 0 && !l->clip) || (lanes >= 16 && p.out_channels < 4));
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
    if (l->rows_in_place) {
      l->output.row = work.grad_output_strides.h;
      l->output.channel = work.grad_output_strides.c;
      l->output_floats = 0;
    }
    if (l->in_place) {
      in.channel = work.input_strides.c;
      l->output.channel = work.grad_output_strides.c;
    }
    if (l->in_place || l->lone_rows) l->input_floats = l->output_floats = 0;
    return l->floats = l->input_floats + l->output_floats + b.groups * l->outputs * slots;
  };
  while (!channels_last && 2 * b.groups <= p.groups && floats() <= floats_worth(kSmall, work) / 2 &&
         l->tasks(p) >= 16 * threads)
    b.groups *= 2;
  while (floats() > kTarget && b.rows * p.h.stride > 2 * span + 1 && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  // A lane's sums end with the block, or with a few of its columns where tiles have one output channel, and must not exceed a run.
  // A row narrower than a vector still adds to each lane once.
  while (b.rows * (p.out_channels < 4 ? 1 : ceil_div(b.columns, lanes)) > kRun && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  if (b.columns > kRun * lanes) b.columns = kRun * lanes;
  while (floats() > work.scratch && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (floats() > work.scratch && b.groups > 1) b.groups = ceil_div(b.groups, 2);
  while (floats() > work.scratch && l->outputs > 4) l->outputs = round_up(ceil_div(l->outputs, 2), 4);
  while (floats() > work.scratch && b.columns > 4 * lanes) b.columns = round_up(ceil_div(b.columns, 2), lanes);
  if (floats() > work.scratch) return false;
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

}  // namespace groupwise
