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

// Remembers what was measured, in place of what was measured before. Plans that were made before stay as they are.
void remember(const Request& request, const Timings& timings);
void remember(const std::string& isa, const std::string& key, const Timings& timings);
void forget_all();

std::optional<Timings> remembered(const Request& request);

}  // namespace groupwise
