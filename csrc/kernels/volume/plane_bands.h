// Bands of the rows of a plane.
#pragma once

#include <vector>

#include "request.h"

namespace groupwise {

// Output rows [first, first + axis.out) of a forward, or [first, first + axis.in) of a grad_input: the problem that computes them
// alone, which reads rows from `from` on.
struct Band {
  int64_t first, from;
  Axis axis;
};

// Returns the bands of a plane whose numbers have the size of so many floats. Those of a channels-last tensor have so few rows that all
// planes that they read stay in the cache while the taps of the depth are added, as the blocks of groups of a contiguous one do.
std::vector<Band> bands_of(const Request& request, int64_t floats_each);

}  // namespace groupwise
