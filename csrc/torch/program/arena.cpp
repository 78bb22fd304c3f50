#include "torch/program/arena.h"

#include <algorithm>
#include <numeric>

namespace groupwise {
namespace {

// A cache line, and the longest vector.
constexpr int64_t kAlignment = 64;

}  // namespace

Arena pack(const std::vector<Span>& spans) {
  Arena made;
  made.offsets.resize(spans.size());
  std::vector<size_t> order(spans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // The large ones come first: small ones fit into the gaps that they leave.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return spans[a].bytes > spans[b].bytes; });
  std::vector<size_t> placed;  // by offset
  for (const size_t i : order) {
    const int64_t bytes = (spans[i].bytes + kAlignment - 1) / kAlignment * kAlignment;
    int64_t offset = 0;
    for (const size_t other : placed) {
      if (spans[other].last < spans[i].first || spans[i].last < spans[other].first) continue;
      if (made.offsets[other] >= offset + bytes) break;
      offset = std::max(offset, made.offsets[other] + (spans[other].bytes + kAlignment - 1) / kAlignment * kAlignment);
    }
    made.offsets[i] = offset;
    made.bytes = std::max(made.bytes, offset + bytes);
    const auto later = [&](size_t a, size_t b) { return made.offsets[a] < made.offsets[b]; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i, later), i);
  }
  return made;
}

}  // namespace groupwise
