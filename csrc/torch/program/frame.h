// What one running call of a program has for itself: the values in its slots, and an arena that holds most of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "torch/program/step.h"

namespace groupwise {

// A tensor in the arena.
struct Place {
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
  int64_t offset;
};

// How a frame holds what the steps write; a row a step. Slots that neither says anything about get new values in each call.
struct Layout {
  explicit Layout(size_t steps) : places(steps), once(steps, false), same(steps, -1) {}

  std::vector<std::optional<Place>> places;  // in the arena, by the step's `out`
  std::vector<bool> once;                    // a view of what the frame holds, which is made with the frame
  std::vector<int64_t> same;                 // the slot whose tensor the step returns, after it wrote to it; -1 for none
  int64_t bytes = 0;                         // of the arena
};

class Frame {
 public:
  using Values = std::vector<c10::IValue>;
  // Is called after each step, and before what nothing reads any more is dropped.
  using Observer = std::function<void(size_t step, const Values& values)>;

  Frame(const Steps& steps, const Layout& layout);
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& leaves, const Observer& observer);
  // Fills the arena with NaN.
  void poison();

 private:
  // A step as the frame runs it: what the frame holds is among the arguments.
  struct Call {
    size_t step;
    const Callee* callee;
    Values arguments;
    std::vector<Fill> fills;
    std::vector<int64_t> lists;  // the arguments that are lists, and are filled in each call
    int64_t write;               // -1 where the slot has its value
    int dispatch;
    std::vector<int64_t> dead;  // the slots that nothing reads later
  };
  void fill(Call* call) const;
  void drop_dead();

  const Steps* steps_;
  at::Tensor arena_;
  Values values_;
  std::vector<bool> kept_;  // whether the slot has one value for good
  std::vector<Call> calls_;
};

}  // namespace groupwise
