#include "kernels/gelu/sweep-inl.h"
