// A plan holds what runs for a request. It is made once, kept by its request, and printed as it is.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/table.h"
#include "plan/measured.h"
#include "plan/policy.h"

namespace groupwise {

struct Plan {
  Request request;
  const KernelRow* kernel = nullptr;  // null for PyTorch's own
  std::shared_ptr<const Work> work;   // of the kernel
  Source source = Source::sole;
  bool safe = true;              // PyTorch's kernel is right, reads its tensors alone, and ends
  const char* hazard = nullptr;  // what PyTorch's kernel may do to the process, or null
  std::string evidence;          // what the source says of the choice
  bool open = false;             // measuring may add to what is known
  bool in_table = false;         // of an open one: a table knows the request, whatever was measured
  int64_t tries = 0;             // how often it was measured before
  std::string sharing;           // why fewer threads compute than may
  double speedup = 0;            // over PyTorch's kernel, as the source expects it; 0 if it does not say
  // By name: why each kernel cannot run, and what the source says of each other one that can.
  std::vector<std::pair<const char*, std::string>> refused, others;

  const char* name() const { return kernel ? kernel->name : kPyTorch; }
};

// Returns what a profile shows: "groupwise::planar avx2", or "groupwise::planar grad_weight avx2" for a gradient.
std::string profile_name(std::string_view kernel, Direction direction, const Kernels& target);

// Returns the plan of a request, which this thread keeps. `forced` is the one kernel that may run; "" leaves the choice.
std::shared_ptr<const Plan> plan_of(const Request& request, const std::string& forced);

// Makes the plan of a request anew, for this thread, from what is known now.
std::shared_ptr<const Plan> plan_again(const Request& request);

// The kernels of ours that can run a request, each laid out; none for what no kernel supports. `refused` gets why the others
// cannot.
std::vector<Candidate> candidates_of(const Request& request, std::vector<std::pair<const char*, std::string>>* refused);

// Returns which of the candidates were not measured.
std::vector<size_t> left_out(const std::vector<Candidate>& candidates, const std::optional<Measured>& measured);

// Returns the plan as JSON.
std::string describe(const Plan& plan);

}  // namespace groupwise
