#include "kernels/squeeze/gate-inl.h"
