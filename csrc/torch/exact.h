// What Convolution (binding/convolution-inl.h) asks of PyTorch, by the C++ interface of one release.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>

#include "torch/call.h"
#include "torch/pool.h"
#include "torch/profiled.h"

namespace groupwise {

struct Exact {
  using Tensor = at::Tensor;
  using Profiled = groupwise::Profiled;

  static Dtype dtype_of(const Tensor& t) { return groupwise::dtype_of(t); }
  static Strided strided_of(const Tensor& t) { return groupwise::strided_of(t); }
  static const float* read_of(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
  static float* write_of(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
  static Tensor contiguous(const Tensor& t, bool channels_last) { return t.contiguous(format(channels_last, t.dim())); }
  static Tensor empty(const Tensor& like, Numbers sizes, bool channels_last) {
    return groupwise::empty(sizes, channels_last, like.options());
  }
  static Tensor empty_strided(const Tensor& like, Numbers sizes, Numbers strides) {
    return at::empty_strided({sizes.data(), sizes.size()}, {strides.data(), strides.size()}, like.options());
  }
  // torch.jit.trace does not record aten::convolution itself but the operators below it, so a kernel that writes into a tensor from
  // at::empty would leave a graph of aten::empty alone.
  static bool traced() { return at::tracer::impl::is_dispatch_enabled(); }
  static bool deterministic() { return at::globalContext().deterministicAlgorithms(); }
  static bool has_onednn() { return at::globalContext().userEnabledMkldnn(); }
  static bool in_parallel_region() { return at::in_parallel_region(); }
  static int64_t threads() { return at::get_num_threads(); }
  static constexpr ParallelFor parallel_for = groupwise::parallel_for;
};

}  // namespace groupwise
