// What the operators that take means over pixels have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/squeeze/squeeze.h"

namespace groupwise {

// Returns the sweeps of a dense x, which has elements, that write y if it is defined.
inline Squeeze squeeze_of(const at::Tensor& x, const at::Tensor& y) {
  Squeeze s{};
  s.samples = x.size(0);
  s.channels = x.size(1);
  s.pixels = x.numel() / s.samples / s.channels;
  // One channel is one plane in either format, and one pixel one row.
  s.rows = s.channels > 1 && (s.pixels == 1 || x.suggest_memory_format() != at::MemoryFormat::Contiguous);
  s.low = x.scalar_type() == at::kBFloat16;
  s.x = x.const_data_ptr();
  s.y = y.defined() ? y.mutable_data_ptr() : nullptr;
  return s;
}

}  // namespace groupwise
