// The one point where an instruction set is chosen.
#pragma once

#include <string>

#include "kernels.h"

namespace groupwise {

// The names of the instruction sets that this library holds, the plainest first.
std::vector<std::string> isa_names();

// The kernels of the best set that this machine runs, or of the one that GROUPWISE_ISA names. Where that cannot be had,
// `isa_problem` says why, and the best set is used.
const Kernels& kernels();
std::string isa_problem();

}  // namespace groupwise
