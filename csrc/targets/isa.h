// Chooses the instruction set, here and nowhere else.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace groupwise {

// Returns the names of the instruction sets that this library holds, the plainest first.
std::vector<std::string> isa_names();

// Returns the kernels of the set that GROUPWISE_ISA names, or of the best one that this machine runs. If the named set cannot
// run, `isa_problem` says why and the best one is returned.
const Kernels& kernels();
std::string isa_problem();

}  // namespace groupwise
