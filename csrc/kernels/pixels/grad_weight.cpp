#include "kernels/pixels/panels-inl.h"
