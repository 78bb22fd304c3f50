#include "kernels/narrow/correlate-inl.h"
