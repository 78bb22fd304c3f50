#include "kernels/brgemm/grad_weight-inl.h"
