#include "kernels/brgemm/correlate-inl.h"
