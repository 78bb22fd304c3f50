// The table of kernels. Planner, tests, `forced`, `groupwise plan` and the docs enumerate it: a kernel is a folder, and a row that names it here.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/work.h"

namespace groupwise {

// The numbers that a kernel computes. One of float32 computes copies of numbers of 16 bits (kernels/converted).
enum class Computes { float32, float32_and_64, bfloat16 };

struct KernelRow {
  const char* name;
  const char* documentation;       // a sentence: what runs along its vectors, and for which layers it is made
  std::array<bool, 3> directions;  // forward, grad_input, grad_weight
  // Returns why the kernel cannot compute a request of its directions, or null if it can.
  const char* (*refuses)(const Request& request);
  // Returns null if even the smallest block exceeds the scratch.
  std::unique_ptr<Work> (*lay_out)(const Request& request);
  Computes computes = Computes::float32;
  // Its error is relative to the norm of what it reads, and not to each result's own products: it is not chosen unless allowed.
  bool by_norm = false;
};

// All kernels of this library, in the order in which they are tried. PyTorch's own, `kPyTorch`, is none of them.
const std::vector<const KernelRow*>& kernel_table();
constexpr const char* kPyTorch = "pytorch";

}  // namespace groupwise
