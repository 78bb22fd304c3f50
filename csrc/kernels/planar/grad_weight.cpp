#include "kernels/planar/grad_weight-inl.h"
