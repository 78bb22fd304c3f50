// Measures what can compute a request, PyTorch's kernel among them, when the request is first met.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "plan/measured.h"

namespace groupwise {

// Turns measuring on, or off (0). Beside two calls of PyTorch's kernel, a request is measured for as long as `calls` of them take;
// only the first call of a slow kernel may take longer. Measuring ends when it took so many seconds in all, of which `when_spent`
// is told. With `unknown` only those requests are measured of which no table knows. Each result is added to the file at `path` as
// one line, {"isa": "avx2", "request": "0 1 ...", "seconds": {"pytorch": 1e-3, ...}}; "" keeps none.
void tune(double calls, double seconds, bool unknown, const std::string& path);
// Tells whether requests are measured now: those that a table knows, or those that none knows.
bool measures(bool in_table);

// Lets measuring begin anew with all of its seconds.
void refill();
// Sets what is called when they are spent; null for nothing.
void when_spent(void (*told)());
// Sets what is called before a request is measured that no table knows, if only such requests are: once after each call of `tune`.
// Null for nothing.
void when_unknown(void (*told)());

// Replaces the clock, which returns seconds; null sets the processor's own.
void set_clock(double (*clock)());

struct Contender {
  std::string kernel;
  std::function<void()> run;
};

// Times the contenders in turn, the first of which is PyTorch's, and remembers the least time of each with those from before.
// Leaves out those that fail; where PyTorch's fails, that is remembered as a try. Measures nothing unless the request was measured
// `tries` times, as another thread may have measured it since. Returns false, and does nothing, while another thread measures.
bool measure(const Request& request, const std::vector<Contender>& contenders, int64_t tries, bool in_table);

// Returns {"requests": 3, "seconds": 0.01, "drawn": 0.01, "lost": 0}: what was measured since the library was loaded, how long
// that took, how much of it counts against the seconds that measuring may take, and how many results could not be written.
std::string measured_so_far();

}  // namespace groupwise
