// What was measured on this machine: the seconds of PyTorch's kernel and of each of ours, by request.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "request.h"

namespace groupwise {

// Kernel -> seconds of one call; PyTorch's is among them.
using Timings = std::vector<std::pair<std::string, double>>;

// `tries` counts how often that was measured. A kernel that the budget left out, or that failed, is measured again until then.
struct Measured {
  Timings timings;
  int64_t tries = 0;
};
constexpr int64_t kMostTries = 3;

// Remembers what was measured, in place of what was measured before. Plans that were made before stay as they are.
void remember(const Request& request, const Measured& measured);
void remember(const std::string& isa, const std::string& key, const Measured& measured);
void forget_all();

std::optional<Measured> remembered(const Request& request);

}  // namespace groupwise
