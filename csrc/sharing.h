// From how much work on threads share it: of convolutions by a number that is fitted to measurements of small layers, because
// the sum of a weight's gradient depends on the threads; of all else by what this machine needs to start threads.
#pragma once

#include <string>

#include "plan/machine.h"
#include "request.h"

namespace groupwise {

// Lets threads share work if each gets so many products for each lane of an instruction set's vectors, or more. Until it is
// told, they share all work.
void share_from(const Kernels& target, double products_a_lane);

// Returns from how many products on so many threads share work.
double shared_from(const Kernels& target, int64_t threads);

// Returns how many threads compute: all, or one for little work.
int64_t threads_worth(const Request& request);

// Work that threads divide evenly: its operations, a multiply-add counting as two, and the bytes that it reads and writes.
struct Share {
  double operations, bytes;
};

// Tells whether threads save more time than a machine needs to start them and to wait for them.
bool saves_time(const Share& share, int64_t threads, const Machine& machine);

// The same on this machine, of work whose results do not depend on the threads. The time of a start is measured once for each
// number of threads, or told.
bool worth_threads(const Share& share, int64_t threads, ParallelFor parallel_for);

// Lets starts take so many seconds from now on, or as many as they are measured to if the number is negative.
void start_takes(double seconds);

}  // namespace groupwise
