#include "kernels/maxpool/rows-inl.h"
