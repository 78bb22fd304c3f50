#include "kernels/planar/correlate-inl.h"
