#include "kernels/low/correlate-inl.h"
