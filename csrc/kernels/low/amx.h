// Whether bfloat16 products may be computed by AMX.
#pragma once

namespace groupwise {

// Tells whether the processor multiplies tiles and pairs of bfloat16 numbers and the system lets this process use them, which it is asked once.
bool multiplies_tiles();

}  // namespace groupwise
