// A program: the steps of an optimized network, run without Python.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "torch/program/frame.h"

namespace groupwise {

// Its first call allocates each value, and watches. It lays out an arena, from which later calls take memory: all but that of the
// outputs and of operators that allocate their results themselves. Inputs have one shape and one memory format. Several threads may
// run it at once, once all steps are there.
class Program : public torch::CustomClassHolder {
 public:
  // `shares` tells whether an output may share memory with an input, so that a write to it must count for both.
  Program(int64_t slots, std::vector<int64_t> inputs, std::vector<int64_t> outputs, bool shares);
  ~Program() override;

  void add_constant(int64_t slot, c10::IValue value);
  void add_step(Step step);
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& leaves) const;
  // Runs once, and returns the seconds of each step.
  std::vector<double> time(const std::vector<at::Tensor>& leaves) const;
  // The bytes of the arena of one running call; 0 before the first.
  int64_t arena_bytes() const;
  // Returns the number of frames that no call uses.
  int64_t frames() const;
  // Fills the arenas that no call uses with NaN. For tests.
  void poison() const;

 private:
  void check(int64_t slot) const;
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& leaves, const Frame::Observer& observer) const;
  std::vector<at::Tensor> run_frame(const std::vector<at::Tensor>& leaves, const Frame::Observer& observer) const;

  // The most frames that wait for calls.
  static constexpr size_t kFrames = 16;
  std::unique_ptr<Frame> take() const;
  void give_back(std::unique_ptr<Frame> frame) const;

  Steps steps_;
  bool shares_;
  // There is no lock, which a forked child might find locked for good. The layout is set once; a frame that waits is in one place.
  mutable std::atomic<const Layout*> layout_{nullptr};
  mutable std::array<std::atomic<Frame*>, kFrames> free_{};
};

}  // namespace groupwise
