#include "bands.h"

namespace groupwise {

std::vector<int64_t> windows_of(const std::vector<Axis>& heights, int64_t rows) {
  std::vector<int64_t> windows(heights.size() - 1);
  // The first band of a range reads the most: all rows that later ones find there.
  for (size_t i = heights.size() - 1; i > 0; i--) {
    const Axis& h = heights[i];
    rows = windows[i - 1] = std::min(h.in, (rows - 1) * h.stride + (h.kernel - 1) * h.dilation + 1);
  }
  return windows;
}

int64_t rows_within(const std::vector<Axis>& heights, const std::vector<int64_t>& row_floats, int64_t most) {
  const auto fits = [&](int64_t rows) {
    const std::vector<int64_t> windows = windows_of(heights, rows);
    int64_t floats = 0;
    for (size_t i = 0; i < windows.size(); i++) floats += windows[i] * row_floats[i];
    return floats <= most;
  };
  int64_t least = 1, beyond = heights.back().out + 1;
  while (beyond - least > 1) {
    const int64_t middle = least + (beyond - least) / 2;
    (fits(middle) ? least : beyond) = middle;
  }
  return least;
}

}  // namespace groupwise
