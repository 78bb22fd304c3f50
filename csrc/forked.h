// What a forked child finds open: a child that is forked while another thread holds a mutex would find it locked forever.
#pragma once

#include <pthread.h>

#include <mutex>

namespace groupwise {

// Returns the one T of the process, which has a `mutex` that a fork waits for. `in_child` changes it in a forked child. It is never
// destroyed: threads may still convolve while the process ends. Each T is kept in one place only.
template <class T, void (*in_child)(T&) = nullptr>
T& forked() {
  static T* made = [] {
    pthread_atfork([] { forked<T, in_child>().mutex.lock(); }, [] { forked<T, in_child>().mutex.unlock(); },
                   [] {
                     if constexpr (in_child != nullptr) in_child(forked<T, in_child>());
                     forked<T, in_child>().mutex.unlock();
                   });
    return new T;
  }();
  return *made;
}

}  // namespace groupwise
