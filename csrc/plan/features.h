// The numbers by which tables tell requests apart. benchmarks/features.py defines the same, in the same order.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "request.h"

namespace groupwise {

// Returns each feature by its name. Channels are counted in one group, and `log2` is of a product of sizes.
std::vector<std::pair<const char*, double>> features_of(const Request& request);

}  // namespace groupwise
