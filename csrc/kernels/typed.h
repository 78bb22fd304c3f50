// Work on the numbers that the vectors of a body hold. A body that is compiled for floats and for doubles names them alike.
#pragma once

#include "problem.h"
#include "simd/simd.h"

namespace groupwise::GW_TARGET {

using Correlation = CorrelationOf<Real>;
using GradWeight = GradWeightOf<Real>;

}  // namespace groupwise::GW_TARGET
