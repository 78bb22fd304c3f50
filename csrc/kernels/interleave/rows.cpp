#include "kernels/interleave/rows-inl.h"
