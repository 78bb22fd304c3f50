// Where values that live for some steps of a program lie in one buffer.
#pragma once

#include <cstdint>
#include <vector>

namespace groupwise {

// A value of so many bytes, which step `first` writes and step `last` reads the last time.
struct Span {
  int64_t first, last, bytes;
};

struct Arena {
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
};

// Gives each value an offset, so that no two values that live during the same step overlap.
Arena pack(const std::vector<Span>& spans);

}  // namespace groupwise
