// What the process and its threads asked for, and what ran since.
#pragma once

#include <string>

#include "plan.h"

namespace groupwise {

// Whether this thread's convolutions take the route.
bool routed();
void route(bool on);
int thread_route();  // 1 yes, -1 no, 0 as the process
int route_thread(int state);  // returns what was

// The one kernel that this thread may run, or "".
const std::string& forced();
std::string force(std::string kernel);  // returns what was

// Keeps a plan that ran; the newest kMostPlans are kept.
constexpr int64_t kMostPlans = 1024;
void remember(const Plan& plan);
// The kept plans as JSON, and how many were ever kept; and dropping those, not what other threads kept since.
struct Remembered {
  std::string json;
  int64_t until;
};
Remembered remembered();
void forget(int64_t until);

}  // namespace groupwise
