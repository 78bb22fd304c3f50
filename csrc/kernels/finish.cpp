#include "kernels/finish-inl.h"
