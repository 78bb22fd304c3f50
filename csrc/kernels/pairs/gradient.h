// The gradient of a weight by pairs of positions.
#pragma once

#include "kernels/work.h"

namespace groupwise {

std::unique_ptr<Work> pairs_gradient(const Request& r);

}  // namespace groupwise
