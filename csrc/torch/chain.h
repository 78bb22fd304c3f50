// Layers that follow each other, run band by band: what passes between them stays in the cache, and threads meet once a chain.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "torch/layer.h"

namespace groupwise {

// Two layers or more, of which only the last may have a residual. It runs channels_last images. Each thread computes some rows of the
// output, in bands; rows of the other layers' outputs at the edge of two threads' rows are computed by both.
class Chain : public torch::CustomClassHolder {
 public:
  using Layers = std::vector<c10::intrusive_ptr<Layer>>;

  // `rows` are those of a band; 0 leaves them to the cache.
  Chain(Layers layers, int64_t rows);
  ~Chain() override;

  // Returns why the chain cannot run a source of this shape and format, or "". It computes nothing.
  std::string refuses(const at::Tensor& source) const;
  // Returns how many rows of the output a band has at most.
  int64_t rows(const at::Tensor& source) const;
  at::Tensor empty(const at::Tensor& source) const;
  // Computes `out`, which has the shape and format of an `empty(source)` and overlaps neither source nor residual. `residual` is
  // undefined if the last layer has none.
  void run(const at::Tensor& source, const at::Tensor& residual, const at::Tensor& out) const;

 private:
  struct Ready;
  std::shared_ptr<Ready> laid_out(const at::Tensor& source, const at::Tensor* out) const;
  std::shared_ptr<const Ready> ready(const at::Tensor& source, const at::Tensor& out) const;

  Layers layers_;
  int64_t rows_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<const Ready>> kept_;  // the last one that ran comes first
};

}  // namespace groupwise
