// What a forked child finds open: a child that is forked while another thread holds a mutex would find it locked forever.
#pragma once

#include <pthread.h>

#include <mutex>
#include <thread>

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

// Locks a mutex that is held for moments only. A forked child may find it locked for good: then the lock owns nothing.
inline std::unique_lock<std::mutex> locked_soon(std::mutex& mutex) {
  std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  for (int tries = 0; !lock && tries < 10000; tries++) {
    std::this_thread::yield();
    lock = std::unique_lock<std::mutex>(mutex, std::try_to_lock);
  }
  return lock;
}

}  // namespace groupwise
