// Functions of PyTorch that are no part of its stable interface. They are looked up by name, so that a library loads where one is
// missing.
#pragma once

#include <dlfcn.h>

namespace groupwise {

// Returns the function of this (mangled) name, or null.
template <class F>
F* look_up(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace groupwise
