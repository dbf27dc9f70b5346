// Threads that do not fight with PyTorch's.
#pragma once

#include <stdint.h>

#include <string>

namespace thermosphere {

// Runs body(context, task) for every task in [0, tasks), each once, on up to `threads` threads, and returns
// when all are done. Which thread runs a task is not fixed; bodies must not depend on it. What the first task
// to throw threw is thrown again, when all threads have ended.
void parallel_for(int64_t tasks, int threads, void (*body)(void* context, int64_t task), void* context);

template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  parallel_for(
      tasks, threads, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// "openmp (<library>)" or "std::thread".
std::string parallel_backend();

}  // namespace thermosphere
