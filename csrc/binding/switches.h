// Who asked for dispatch to the kernels: the process, and a thread that overrides it.
#pragma once

#include <string>

namespace groupwise {

// Whether the kernels may take this thread's convolutions: as the thread says, else as the process says. They may, unless the
// thread says no, where `dispatch_where` says so.
bool dispatched();
void dispatch(bool on);
// Sets what tells of this thread's present call whether the kernels may take it.
void dispatch_where(bool (*marked)());
// Overrides the process in this thread: 1 yes, -1 no, 0 as the process, -2 no except where PyTorch's kernel may harm the process.
// Returns what it was.
int dispatch_thread(int state);
// Whether the kernels may take only what PyTorch's may harm the process by.
bool dispatched_if_harmful();

// The one kernel that may run in this thread, or "" for the planner's choice.
const std::string& forced();
// Returns what it was.
std::string force(std::string kernel);

}  // namespace groupwise
