// What the layouts of all kernels share: blocks of outputs, pixels in scratch, and how long an accumulator sums.
#pragma once

#include <algorithm>

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
// The same for a grad_weight of copied pixels. Where all products have one sign, runs of 192 had 3 times the error of PyTorch
// on a processor with AVX-512. Runs of 64 take 0-3 % more time, of 32 up to 10 % for depthwise layers. Pixels that are read in
// place keep runs of 192, since 64 take 5-15 % more time there (AMD EPYC, one core, 14x14 to 56x56, 1 and 8 samples).
constexpr int64_t kGradWeightRun = 64;
// Returns how many channels of a phase one accumulator sums: at most what `longest_run` allows, at least one, in even runs.
inline int64_t run_of_channels(const Correlation& c, const Phase& w) {
  const int64_t most = std::max<int64_t>(1, c.longest_run / std::max<int64_t>(1, c.h.taps * w.taps));
  return ceil_div(c.in_channels, ceil_div(c.in_channels, most));
}

// A task computes `rows` x `columns` outputs (of each phase) of `groups` groups of one sample.
struct Block {
  int64_t rows, columns, groups;
};

// The channels of a channels-last tensor that a task computes: one cache line.
constexpr int64_t kChannelBlock = 16;

// Pixels in scratch, [row][column][width].
struct Pixels {
  int64_t rows, columns, width;
};

// Returns the lowest position that an output's taps read in any phase; `reach` is how far beyond it others read.
int64_t lowest(const std::vector<Phase>& phases);
int64_t reach(const std::vector<Phase>& phases);
// Returns the most outputs of a row in any phase, and one where there are none.
int64_t widest(const std::vector<Phase>& phases);

// Divides the samples and positions of a weight's gradient into parts where there are too few tasks for the threads.
template <class Layout>
void divide_positions(const Problem& p, int64_t threads, Layout* l) {
  l->parts = 1;
  const int64_t tasks = l->tasks(p);
  if (threads <= 1 || tasks >= 2 * threads) return;
  const int64_t image_blocks = p.batch * ceil_div(p.h.out, l->block.rows) * ceil_div(p.w.out, l->block.columns);
  l->parts = std::max<int64_t>(1, std::min(image_blocks, ceil_div(2 * threads, tasks)));
}

}  // namespace groupwise
