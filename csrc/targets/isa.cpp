#include "targets/isa.h"

#include <cstdlib>

#include "targets/cpuid.h"

namespace groupwise {

#ifdef GROUPWISE_HAVE_BASELINE
extern const Kernels kBaseline;
#endif
#ifdef GROUPWISE_HAVE_NEON
extern const Kernels kNeon;
#endif
#ifdef GROUPWISE_HAVE_AVX2
extern const Kernels kAvx2;
#endif
#ifdef GROUPWISE_HAVE_AVX512
extern const Kernels kAvx512;
#endif

namespace {

struct Row {
  const Kernels* kernels;
  bool runs;
};

// Rows go from the plainest set to the best. A new instruction set is one row here and one target_*.cpp.
std::vector<Row> table() {
  std::vector<Row> rows;
#ifdef GROUPWISE_HAVE_BASELINE
  rows.push_back({&kBaseline, true});
#endif
#ifdef GROUPWISE_HAVE_NEON
  // Every processor of aarch64 has it.
  rows.push_back({&kNeon, true});
#endif
#ifdef GROUPWISE_HAVE_AVX2
  // Every processor with AVX2 has F16C, but a virtual machine may hide it, where CPUID also takes long.
  static const bool f16c = has_f16c();
  rows.push_back({&kAvx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c});
#endif
#ifdef GROUPWISE_HAVE_AVX512
  // These also ask whether the system saves the registers.
  rows.push_back({&kAvx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
#endif
  return rows;
}

thread_local const Kernels* thread_forced = nullptr;

struct Selection {
  const Kernels* kernels;
  std::string problem;
};

Selection select() {
  Selection best{nullptr, ""};
  const char* wanted = std::getenv("GROUPWISE_ISA");
  std::string valid;
  for (const Row& row : table()) {
    if (row.runs) best.kernels = row.kernels;
    if (row.runs) valid += (valid.empty() ? "" : ", ") + std::string(row.kernels->isa);
    if (row.runs && wanted && std::string(wanted) == row.kernels->isa) return {row.kernels, ""};
  }
  if (wanted && *wanted) best.problem = "GROUPWISE_ISA=" + std::string(wanted) + " cannot run here; valid: " + valid;
  return best;
}

const Selection& selection() {
  static const Selection chosen = select();
  return chosen;
}

}  // namespace

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Row& row : table()) names.push_back(row.kernels->isa);
  return names;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Row& row : table())
    if (row.runs) names.push_back(row.kernels->isa);
  return names;
}

const Kernels& kernels() { return thread_forced ? *thread_forced : *selection().kernels; }

bool has_avx512_fp16() {
#ifdef __x86_64__
  return has(ExtendedFeature::avx512_fp16) && runnable_isas().back() == "avx512";
#else
  return false;
#endif
}

const Kernels* kernels_of(const std::string& isa) {
  for (const Row& row : table())
    if (row.runs && isa == row.kernels->isa) return row.kernels;
  return nullptr;
}

bool force_isa(const std::string& isa) {
  const Kernels* found = kernels_of(isa);
  if (found || isa.empty()) thread_forced = found;
  return found || isa.empty();
}

const char* forced_isa() { return thread_forced ? thread_forced->isa : ""; }

std::string isa_problem() { return selection().problem; }

}  // namespace groupwise
