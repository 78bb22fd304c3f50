#include "kernels/sum-inl.h"
