#include "kernels/stem/correlate-inl.h"
