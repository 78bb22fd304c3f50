// Lends the core PyTorch's product of small matrices.
#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <string>
#include <vector>

#include "binding/lookup.h"
#include "kernels/brgemm/product.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// at::native::cpublas::brgemm of floats and brgemm_release. Each thread compiles a product of sizes, strides and `add` that it has
// not met before, and keeps it.
constexpr const char* kBrgemm = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb";
constexpr const char* kRelease = "_ZN2at6native7cpublas14brgemm_releaseEb";
constexpr const char* kHasOneDnn = "_ZN2at7Context9hasMKLDNNEv";
using Brgemm = void(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, const float*, const float*, float*, bool);
using Release = void(bool);

Brgemm* brgemm = nullptr;
Release* brgemm_release = nullptr;

// Tells whether oneDNN, which makes the micro-kernel, may use AVX-512. Only its support of bfloat16 tells, and some processors
// without AVX-512 have that too.
bool onednn_has_avx512() {
  StableIValue answer[1] = {0};
  return torch_call_dispatcher("mkldnn::_is_mkldnn_bf16_supported", "", answer, TORCH_ABI_VERSION) == 0 && (answer[0] & 1) != 0;
}

void lend_product() {
  brgemm = look_up<Brgemm>(kBrgemm);
  brgemm_release = look_up<Release>(kRelease);
  const std::vector<std::string> isas = runnable_isas();
  const bool avx2 = isas.size() > 1, avx512 = isas.back() == "avx512";
  // Without oneDNN, or AVX2, brgemm calls a BLAS, which has threads of its own.
  const auto has_onednn = look_up<bool()>(kHasOneDnn);
  if (!brgemm || !avx2 || !has_onednn || !has_onednn()) return;
  Product made;
  made.multiply = [](int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t b_row, int64_t c_row, bool add, const float* a,
                     const float* b, float* c) { brgemm(m, n, k, a_row, b_row, c_row, add, a, b, c, false); };
  if (brgemm_release) made.release = [] { brgemm_release(false); };
  made.isa = avx512 && onednn_has_avx512() ? "avx512" : "avx2";
  use_product(made);
}

// The library lends it when it is loaded, before anything is planned. A PyTorch without it is no error.
const bool lent = [] {
  try {
    lend_product();
  } catch (const std::exception&) {
  }
  return true;
}();

}  // namespace
}  // namespace groupwise
