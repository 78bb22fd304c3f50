// Watches a program run without an arena, and lays out the frames of the calls that follow.
#pragma once

#include <vector>

#include "torch/program/frame.h"

namespace groupwise {

class Recorder {
 public:
  explicit Recorder(const Steps& steps);
  void observe(size_t step, const Frame::Values& values);
  Layout layout() const;

 private:
  // Memory that values share: of a step, of an input or of a constant.
  struct Memory {
    int64_t step = -1;  // that wrote it first
    int64_t last = -1;  // step that reads it
    bool held = false;  // whether a frame can hold it
    int64_t bytes = 0;
    Place place{};
  };
  void add_root(int64_t slot, bool held);
  std::vector<bool> in_arena() const;

  const Steps* steps_;
  std::vector<Memory> memories_;
  std::vector<std::vector<size_t>> memory_of_;  // of each slot
  std::vector<int64_t> same_;
  std::vector<bool> view_;  // whether a step returns a view, and computes nothing
};

}  // namespace groupwise
