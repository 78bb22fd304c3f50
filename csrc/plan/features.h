// The numbers by which tables tell requests apart. benchmarks/features.py defines the same, in the same order.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "request.h"

namespace groupwise {

// Kinds of layers whose speeds are foreseen more or less surely: depthwise, strides above 2, dense, groups of fewer than 8 channels,
// and wider ones.
constexpr int kFamilies = 5;
int family_of(const Problem& problem);

// Returns the bytes of the tensors and the weight, as if each number had 4. A volume counts as many planes as it has outputs in
// depth, each of which reads one plane, and one plane of weights.
double bytes_of(const Request& request);

// Returns each feature by its name. Channels are counted in one group, and `log2` is of a product of sizes.
std::vector<std::pair<const char*, double>> features_of(const Request& request);

}  // namespace groupwise
