#include "kernels/norm/forward-inl.h"
