#include "kernels/pixels/grad_weight-inl.h"
