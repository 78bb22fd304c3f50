#include "kernels/narrow/grad_weight-inl.h"
