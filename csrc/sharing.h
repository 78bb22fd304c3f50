// From how much work on threads share it. The number is data, fitted to measurements of small layers.
#pragma once

#include <string>

#include "request.h"

namespace groupwise {

// Lets threads share work if each gets so many products for each lane of an instruction set's vectors, or more. Until it is
// told, they share all work.
void share_from(const Kernels& target, double products_a_lane);

// Returns from how many products on so many threads share work.
double shared_from(const Kernels& target, int64_t threads);

// Returns how many threads compute: all, or one for little work.
int64_t threads_worth(const Request& request);

}  // namespace groupwise
