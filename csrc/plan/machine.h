// What this machine reaches, measured when it is first asked.
#pragma once

#include "targets/isa.h"

namespace groupwise {

// Float32 operations a second of one core by an instruction set, a multiply-add counting as two.
double peak_of(const Kernels& target);

// Bytes a second that one core reads and writes in a copy of 2 MiB, as large as an activation of an early layer.
double copy_bandwidth();

}  // namespace groupwise
