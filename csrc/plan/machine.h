// What this machine reaches, measured when it is first asked.
#pragma once

#include "problem.h"
#include "targets/isa.h"

namespace groupwise {

// Float32 operations a second of one core by an instruction set, a multiply-add counting as two.
double peak_of(const Kernels& target);

// Bytes a second that one core reads and writes in a copy of 2 MiB, as large as an activation of an early layer.
double copy_bandwidth();

// Returns the seconds that so many threads take to start and to be waited for, some time after they worked last; for ever
// where all work stays on the caller's. While other processes keep the cores busy it returns a usual time, and measures a few
// times more.
double start_seconds(const Kernels& target, int64_t threads, ParallelFor parallel_for);

// What a machine reaches: operations and bytes a second of a core, and the seconds of a start.
struct Machine {
  double peak, bandwidth, start;
};

}  // namespace groupwise
