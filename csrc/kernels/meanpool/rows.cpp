#include "kernels/meanpool/rows-inl.h"
