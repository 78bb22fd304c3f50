#include "kernels/gemm/correlate-inl.h"
