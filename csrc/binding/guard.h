// Keeps exceptions inside: none may cross a function that C, and so Python's ctypes, calls.
#pragma once

#include <cstring>
#include <exception>

namespace groupwise {

// The message of this thread's last failure. It has a fixed size because memory may be what is missing.
inline char* failure() {
  thread_local char message[256] = "";
  return message;
}

// Returns what f returns, or `failed` if it throws.
template <class R, class F>
R guarded(R failed, F&& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    std::strncpy(failure(), error.what(), 255);
    return failed;
  } catch (...) {
    std::strncpy(failure(), "unknown error", 255);
    return failed;
  }
}

}  // namespace groupwise
