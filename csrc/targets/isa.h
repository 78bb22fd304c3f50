// Chooses the instruction set, here and nowhere else.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace groupwise {

// Returns the names of the instruction sets that this library holds, the plainest first.
std::vector<std::string> isa_names();

// Returns the kernels of the set that GROUPWISE_ISA names, or of the best one that this machine runs. If the named set cannot
// run, `isa_problem` says why and the best one is returned.
const Kernels& kernels();
std::string isa_problem();

// Returns the names of the sets that this machine runs, the plainest first.
std::vector<std::string> runnable_isas();

// Tells whether the processor computes float16 by AVX512-FP16, as oneDNN then does; our kernels compute float32.
bool has_avx512_fp16();

// Returns the kernels of a set that this machine runs, or null.
const Kernels* kernels_of(const std::string& isa);

// Lets `kernels` return those of a set in this thread, or, for "", those of the process again. False if it cannot run here.
bool force_isa(const std::string& isa);
// Returns the set that this thread forces, or "".
const char* forced_isa();

}  // namespace groupwise
