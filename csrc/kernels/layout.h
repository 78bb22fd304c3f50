// What the layouts of all kernels share: blocks of outputs, pixels in scratch, and how long an accumulator sums.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "problem.h"

namespace groupwise {

inline constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline constexpr int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

// The most products that one accumulator sums in a run. Longer runs round more than PyTorch's blocked sums: one run over the
// 6144 products of a 1-D layer of 48 channels by 128 taps had 15 times PyTorch's error.
constexpr int64_t kRun = 192;
// The same for a grad_input with a stride or a dilation, which PyTorch sums tap by tap: runs of 192 had 2.3 times PyTorch's
// root mean square error, runs of 64 have 1.4 times. Shorter runs take 0-13 % more time with a stride, 0-20 % with a dilation,
// and 20-35 % with neither, where PyTorch's own runs are as long.
constexpr int64_t kGradInputRun = 64;
// The same for a grad_weight of `pixels`; of one tap it is the shortest run (`PanelsLayout::run`). Where all products have one sign,
// runs of 192 had 3 times the error of PyTorch on a processor with AVX-512. Runs of 64 take 0-3 % more time, of 32 up to 10 % for
// depthwise layers. `narrow`, which reads pixels in place, keeps runs of 192, since 64 take 5-15 % more time there (AMD EPYC, one core,
// 14x14 to 56x56, 1 and 8 samples).
constexpr int64_t kGradWeightRun = 64;
// The most taps of a row that planar sums in a run. Runs of 4096 had 2.5 times PyTorch's root mean square error, in groups of 16
// channels.
constexpr int64_t kLongestRow = 1024;
// Returns how many channels of `taps` taps one accumulator sums: at most what `longest_run` allows, at least one, in even runs.
inline int64_t run_of_channels(const CorrelationShape& c, int64_t taps) {
  if (c.in_channels * taps <= c.longest_run) return c.in_channels;
  const int64_t most = std::max<int64_t>(1, c.longest_run / taps);
  return ceil_div(c.in_channels, ceil_div(c.in_channels, most));
}

// Returns the longest run where `count` follow each other: at most `most`, in even runs.
inline int64_t even_run(int64_t count, int64_t most) { return ceil_div(count, ceil_div(count, most)); }

// Returns how many numbers of a shape's dtype take the bytes of so many floats.
template <class Shape>
int64_t floats_worth(int64_t floats, const Shape& shape) {
  return floats * shape.scratch / kScratchFloats;
}

// Returns the lowest position that an output's taps read in any phase; `reach` is how far beyond it others read.
int64_t lowest(const std::vector<Phase>& phases);
int64_t reach(const std::vector<Phase>& phases);
// Returns the most outputs of a row in any phase, and one where there are none.
int64_t widest(const std::vector<Phase>& phases);

// Returns how many numbers both tensors hold.
int64_t numbers_of(const CorrelationShape& c);
int64_t numbers_of(const GradWeightShape& work);

// Tells whether numbers exceed the L2 cache, so that it pays to prefetch them. The scratch is half of that cache, and a tensor a little
// larger still finds much of itself there.
inline bool beyond_cache(int64_t numbers, int64_t scratch) { return numbers > 3 * scratch; }
template <class Shape>
bool beyond_cache(const Shape& shape) {
  return beyond_cache(numbers_of(shape), shape.scratch);
}

// Tells whether samples follow each other as pixels do, channels side by side.
bool one_image(const Strides& s, int64_t pixels);
// Tells whether output i reads input i alone.
bool reads_once(const Phase& s);
// Returns a correlation of one tap whose pixels are one row, with those of all samples as one row, where the tensors allow it; else
// what it was given.
Correlation with_joined_samples(const Correlation& c);
// Returns a weight's gradient of one tap whose pixels are one row, with those of all samples as one row, where the tensors allow it;
// else what it was given.
GradWeight with_joined_samples(const GradWeight& work);

// Tells whether the outputs have so few pixels that threads share channels rather than rows: each would read all weights for a few
// pixels.
bool few_pixels(const CorrelationShape& c, int64_t threads);

// Tells whether tasks leave threads idle: there are fewer than `least` a thread, or few that the threads cannot share evenly. Five on
// two threads waste a sixth of the time.
inline bool uneven(int64_t tasks, int64_t threads, int64_t least = 1) {
  return tasks < least * threads || (tasks < 5 * threads && tasks % threads != 0);
}

// A task computes `rows` x `columns` outputs (of each phase) of `groups` groups of one sample.
struct Block {
  int64_t rows, columns, groups;
};

// Outputs of a block that share their clipped taps. Fewer outputs need fewer taps, and more keep the tiles busy.
struct Strip {
  int64_t rows, columns;
};

// The strips of one axis: the taps of all whole ones together, and of the last one, which has `last` outputs or none.
struct Cuts {
  int64_t size, count, taps, last, last_taps;
};
Cuts cut(const Phase& s, int64_t size);

// Returns the strip that takes the least time, of all rows and columns where clipping pays for neither. `rows` and `columns` are
// sizes to try, and cost(rows, columns) is the time that one tap of such a strip takes, in cycles.
template <class Cost>
Strip cheapest_strip(const CorrelationShape& c, std::initializer_list<int64_t> rows, std::initializer_list<int64_t> columns,
                     Cost&& cost) {
  // The cycles that a strip takes beside its taps, and the most strips of an axis that are looked at.
  constexpr int64_t kStart = 80, kMost = 512;
  const Phase* w = &c.w.front();
  for (const Phase& s : c.w)
    if (s.taps > w->taps) w = &s;
  Strip best{std::max<int64_t>(1, c.h.out), widest(c.w)};
  const bool by_row = worth_clipping(c.h), by_column = worth_clipping(*w);
  if (!by_row && !by_column) return best;
  double least = -1;
  const auto consider = [&](const Cuts& h, int64_t width) {
    const Cuts v = cut(*w, width);
    double time = static_cast<double>(kStart * (h.count + (h.last > 0)) * (v.count + (v.last > 0)));
    const double channels = static_cast<double>(c.in_channels);
    if (h.taps && v.taps) time += channels * h.taps * v.taps * cost(h.size, v.size);
    if (h.taps && v.last_taps) time += channels * h.taps * v.last_taps * cost(h.size, v.last);
    if (h.last_taps && v.taps) time += channels * h.last_taps * v.taps * cost(h.last, v.size);
    if (h.last_taps && v.last_taps) time += channels * h.last_taps * v.last_taps * cost(h.last, v.last);
    if (least >= 0 && time >= least) return;
    least = time;
    best = {h.size, v.size};
  };
  const auto consider_rows = [&](int64_t height) {
    const Cuts h = cut(c.h, height);
    consider(h, widest(c.w));
    if (!by_column) return;
    for (const int64_t size : columns)
      if (size < w->out && w->out <= size * kMost) consider(h, size);
  };
  consider_rows(std::max<int64_t>(1, c.h.out));
  if (by_row)
    for (const int64_t size : rows)
      if (size < c.h.out && c.h.out <= size * kMost) consider_rows(size);
  return best;
}

// Calls f(h, w, row, rows, column, columns) for each strip of the block of outputs that begins at (at_row, at_column): the phases
// with their clipped taps, and the strip's outputs counted in the block. Strips of all phases of the width follow each other.
template <class F>
void each_strip(const CorrelationShape& c, const Block& block, const Strip& strip, int64_t at_row, int64_t at_column, F&& f) {
  const int64_t all_rows = std::min(block.rows, c.h.out - at_row);
  for (int64_t row = 0; row < all_rows; row += strip.rows) {
    const int64_t rows = std::min(strip.rows, all_rows - row);
    const Phase h = clipped(c.h, at_row + row, rows);
    for (const Phase& phase : c.w) {
      const int64_t all_columns = std::min(block.columns, phase.out - at_column);
      for (int64_t column = 0; column < all_columns; column += strip.columns) {
        const int64_t columns = std::min(strip.columns, all_columns - column);
        f(h, clipped(phase, at_column + column, columns), row, rows, column, columns);
      }
    }
  }
}

// The channels of a channels-last tensor that a task computes: one cache line.
constexpr int64_t kChannelBlock = 16;

// Pixels in scratch, [row][column][width].
struct Pixels {
  int64_t rows, columns, width;
};

// Divides the samples and positions of a weight's gradient into parts where there are too few tasks for the threads.
template <class Layout>
void divide_positions(const Problem& p, int64_t threads, Layout* l) {
  l->parts = 1;
  const int64_t tasks = l->tasks(p);
  if (threads <= 1 || tasks >= 2 * threads) return;
  const auto image_blocks = [&] { return p.batch * ceil_div(p.h.out, l->block.rows) * ceil_div(p.w.out, l->block.columns); };
  // An image of one row is divided into columns, where they are many more than the taps that two blocks share.
  const int64_t least = 256 + 2 * (p.w.kernel - 1) * p.w.dilation;
  while (p.h.out == 1 && tasks * image_blocks() < 2 * threads && l->block.columns > least)
    l->block.columns = round_up(ceil_div(l->block.columns, 2), 16);
  l->parts = std::max<int64_t>(1, std::min(image_blocks(), ceil_div(2 * threads, tasks)));
}

}  // namespace groupwise
