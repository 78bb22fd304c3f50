#include "kernels/low/multiply-inl.h"
