#include "kernels/dots/correlate-inl.h"
