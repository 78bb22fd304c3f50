// A convolution with constant weights, which are packed once, and with what follows it: activations and the sum with a residual.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "epilogue.h"
#include "plan/plan.h"
#include "torch/call.h"

namespace groupwise {

// How a convolution moves over its input: one number a spatial dimension.
struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  bool transposed;
  std::vector<int64_t> output_padding;
  int64_t groups;
};

// Returns an activation by the name and the numbers that a plan has for it.
Activate activate_of(const std::string& name, const std::vector<double>& numbers);

// Returns the convolution of a source. Raises an error for one that the layer cannot run on.
Call call_of(const at::Tensor& source, const at::Tensor& weight, const Geometry& geometry);

// A weight of two dimensions is that of a linear layer, whose sources have their features last; it needs no numbers but one group.
// Several threads may run a layer at once. It keeps the weight that it was given, and packs it once: whoever
// changes the weight makes a new layer.
class Layer : public torch::CustomClassHolder {
 public:
  // `kernel` is the one that runs; "" leaves the choice to the planner. Raises an error for what no source can make right.
  Layer(const at::Tensor& weight, const std::optional<at::Tensor>& bias, Geometry geometry, const Activate& before,
        bool residual, const Activate& after, std::string kernel);
  ~Layer() override;

  // Returns why the layer cannot run a source of this shape and format, or "". It computes nothing.
  std::string refuses(const at::Tensor& source) const;
  // Returns the name of the kernel that runs for a source.
  std::string kernel(const at::Tensor& source) const;
  // Returns by how much each kernel is expected to be faster than PyTorch's for a source, by its name, as far as a table of this
  // processor or a measurement tells.
  c10::Dict<std::string, double> expected(const at::Tensor& source) const;
  // Allocates an output for a source, in the format that PyTorch would give it.
  at::Tensor empty(const at::Tensor& source) const;
  // Computes `out`, which has the shape of an `empty(source)` and any strides. `residual` is undefined for a layer without one; it
  // may be `out` itself, which is overwritten, and must not overlap it in another way.
  void run(const at::Tensor& source, const at::Tensor& residual, const at::Tensor& out) const;

 private:
  friend class Chain;  // which runs layers by bands of rows
  struct Prepared;
  struct Kept;
  at::Tensor image_of(const at::Tensor& source) const;
  // Returns what ran, if it read and wrote these tensors in place, else null.
  std::shared_ptr<const Prepared> run_images(const at::Tensor& source, const at::Tensor& residual, const at::Tensor& out) const;
  bool run_again(const at::Tensor& source, const at::Tensor& residual, const at::Tensor& out) const;
  void compute(const Prepared& ready, const at::Tensor& source, const at::Tensor& residual, const at::Tensor& out) const;
  bool begins_with_residual(const Prepared& ready) const;
  void remember(const Prepared* ready, const at::Tensor& source, const at::Tensor& out) const;
  std::shared_ptr<const Prepared> prepared(const Call& call, const at::Tensor& source, const at::Tensor& out) const;
  std::shared_ptr<const Plan> plan(const at::Tensor& source) const;
  Kept& first(size_t i) const;

  at::Tensor weight_, bias_;
  Geometry geometry_;
  Activate before_, after_;
  bool residual_, linear_ = false;
  std::string kernel_;
  mutable std::mutex mutex_;
  mutable std::vector<Kept> kept_;  // the last one that ran comes first
};

}  // namespace groupwise
