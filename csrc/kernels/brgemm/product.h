// The product of small matrices that the host offers. The core has none of its own: csrc/torch lends it PyTorch's.
#pragma once

#include <cstdint>

namespace groupwise {

// C[m][n] = A[m][k] B[k][n], added to C if `add`. Rows are `a_row`, `b_row` and `c_row` floats apart.
using Multiply = void (*)(int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t b_row, int64_t c_row, bool add,
                          const float* a, const float* b, float* c);

struct Product {
  Multiply multiply = nullptr;
  void (*release)() = nullptr;  // gives back what a thread holds between its products; or null
  const char* isa = "";         // the instruction set that it uses
};

// Sets the product, before any plan is made.
void use_product(const Product& product);
const Product& product();

// Returns null if there is a product and a small one came out right, or why not. It is tried once.
const char* product_problem();

}  // namespace groupwise
