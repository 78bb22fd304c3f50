#include "kernels/brgemm/product.h"

namespace groupwise {
namespace {

Product lent;

// Tells whether a product with gaps between its rows comes out right, set and added. Small whole numbers leave nothing to round.
bool comes_out_right(const Product& p) {
  constexpr int64_t m = 5, n = 19, k = 6, a_row = 8, b_row = 24, c_row = 21;
  float a[m * a_row], b[k * b_row], c[m * c_row];
  for (int64_t i = 0; i < m * a_row; i++) a[i] = static_cast<float>(i % 7 - 3);
  for (int64_t i = 0; i < k * b_row; i++) b[i] = static_cast<float>(i % 11 - 5);
  for (float& value : c) value = 1000.0f;
  p.multiply(m, n, k, a_row, b_row, c_row, false, a, b, c);
  p.multiply(m, n, k, a_row, b_row, c_row, true, a, b, c);
  if (p.release) p.release();
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < c_row; j++) {
      float sum = 0.0f;
      for (int64_t l = 0; l < k; l++) sum += a[i * a_row + l] * b[l * b_row + (j < n ? j : 0)];
      if (c[i * c_row + j] != (j < n ? 2 * sum : 1000.0f)) return false;
    }
  return true;
}

const char* tried() {
  if (!lent.multiply) return "it multiplies by PyTorch's brgemm, which this PyTorch lacks";
  try {
    if (comes_out_right(lent)) return nullptr;
  } catch (...) {
  }
  return "it multiplies by PyTorch's brgemm, which failed a test with a small product";
}

}  // namespace

void use_product(const Product& product) { lent = product; }
const Product& product() { return lent; }

const char* product_problem() {
  static const char* const problem = tried();
  return problem;
}

}  // namespace groupwise
