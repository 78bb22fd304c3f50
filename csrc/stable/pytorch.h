// PyTorch by its stable C interface, which is the same in every release from 2.10 on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <initializer_list>
#include <memory>

#include "arguments.h"
#include "plan/plan.h"

namespace groupwise {

// Raises what went wrong where a function of the interface failed.
void check(AOTITorchError code);

// What Convolution (binding/convolution-inl.h) asks of PyTorch.
struct Stable {
  // A tensor of PyTorch that this shares, or null.
  using Tensor = std::shared_ptr<AtenTensorOpaque>;

  class Profiled {
   public:
    Profiled(const Plan& plan, std::initializer_list<const Tensor*> read);
    ~Profiled();
    Profiled(const Profiled&) = delete;

   private:
    AtenRecordFunctionHandle shown_ = nullptr;
  };

  // Takes a tensor over from its caller.
  static Tensor own(AtenTensorHandle handle);
  // Gives the caller a tensor, an undefined one for null.
  static AtenTensorHandle give(const Tensor& t);

  static bool defined(const Tensor& t);
  static Dtype dtype_of(const Tensor& t);
  static Strided strided_of(const Tensor& t);
  static const float* read_of(const Tensor& t);
  static float* write_of(const Tensor& t);
  static Tensor contiguous(const Tensor& t, bool channels_last);
  static Tensor empty(const Tensor& like, Numbers sizes, bool channels_last);
  static Tensor empty_strided(const Tensor& like, Numbers sizes, Numbers strides);
  static bool traced();
  static bool deterministic();
  static bool has_onednn();
  static bool in_parallel_region();
  static int64_t threads();
  static void parallel_for(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context);
};

// Says what this PyTorch lacks for the kernels, or "".
const char* lacks();

}  // namespace groupwise
