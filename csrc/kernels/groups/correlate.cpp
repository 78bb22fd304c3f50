#include "kernels/groups/correlate-inl.h"
