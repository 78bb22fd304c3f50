#include "kernels/low/grad_weight-inl.h"
