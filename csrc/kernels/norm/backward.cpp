#include "kernels/norm/backward-inl.h"
