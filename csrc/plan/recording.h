// Recordings of the plans that are made while they are open, in any thread.
#pragma once

#include <string>

#include "plan/plan.h"

namespace groupwise {

// Plans that one recording keeps; it counts those that come after.
constexpr int64_t kMostRecorded = 100'000;

// Opens a recording and returns its number, which no other recording of this process has.
int64_t start_recording();

// Adds the plan to every open recording. Costs one relaxed load while none is open.
void record(const std::shared_ptr<const Plan>& plan);

// Closes a recording and returns its plans, oldest first, as JSON: {"plans": [...], "dropped": 0}. A second call returns the
// same text. A number that no recording has gives that of an empty one: a forked child does not inherit the recordings
// that other threads of its parent opened.
std::string stop_recording(int64_t number);

// Frees a recording that is closed.
void forget_recording(int64_t number);

}  // namespace groupwise
