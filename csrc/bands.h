// Runs layers that follow each other band by band: a few rows of all layers before the next rows, so that what passes between them
// stays in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "problem.h"

namespace groupwise {

// Returns the rows of the input that some rows of the output read, padding apart.
inline Range rows_read(const Axis& h, Range made) {
  return {std::max<int64_t>(0, made.first * h.stride - h.pad),
          std::min(h.in, (made.last - 1) * h.stride - h.pad + (h.kernel - 1) * h.dilation + 1)};
}

// What one layer computes of a band of an image. All but the last layer write to a window: rows of their output that the next layer
// still reads, those that an earlier band made before those of this one.
struct BandStep {
  size_t layer;
  int64_t image;
  Range reads, makes;
  int64_t read_from;  // the row at the beginning of the window that it reads, or 0 for an image
  Range window;       // the rows that its own window holds afterwards
  int64_t moved;      // so many rows beyond the window's beginning lie the first of them that are there already
};

// Calls f for each step of rows [rows.first, rows.last) of the last layer's output, where the rows of all images are counted
// together. A band has at most `most` of them. `heights` has the height of each layer.
template <class F>
void each_band_step(const std::vector<Axis>& heights, Range rows, int64_t most, F&& f) {
  const size_t count = heights.size();
  const int64_t height = heights.back().out;
  std::vector<Range> made(count), held(count), before(count);
  for (int64_t at = rows.first; at < rows.last;) {
    const int64_t image = at / height, first = at - image * height, last = std::min(height, first + rows.last - at);
    at += last - first;
    const int64_t bands = (last - first + most - 1) / most, size = (last - first + bands - 1) / bands;
    // At the first row of a range nothing is there, and what an earlier range made is computed again.
    std::fill(held.begin(), held.end(), Range{0, 0});
    for (int64_t row = first; row < last; row += size) {
      before = held;
      made.back() = {row, std::min(last, row + size)};
      for (size_t i = count - 1; i > 0; i--) {
        Range& window = held[i - 1];
        made[i - 1] = {window.last, window.last};
        if (made[i].first == made[i].last) continue;
        const Range reads = rows_read(heights[i], made[i]);
        if (reads.last <= window.last) continue;
        made[i - 1] = {std::max(reads.first, window.last), reads.last};
        window = reads;
      }
      for (size_t i = 0; i < count; i++) {
        if (made[i].first == made[i].last) continue;
        const bool kept = held[i].first < before[i].last;
        f(BandStep{i, image, rows_read(heights[i], made[i]), made[i], i > 0 ? held[i - 1].first : 0, held[i],
                   kept ? held[i].first - before[i].first : 0});
      }
    }
  }
}

// Returns how many rows each window has room for, where a band has so many rows.
std::vector<int64_t> windows_of(const std::vector<Axis>& heights, int64_t rows);

// Returns the rows of the largest bands whose windows take at most so many floats, or 1. `row_floats` has the floats of a row of each
// layer's output.
int64_t rows_within(const std::vector<Axis>& heights, const std::vector<int64_t>& row_floats, int64_t most);

}  // namespace groupwise
