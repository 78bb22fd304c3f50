#include "kernels/converted/rows-inl.h"
