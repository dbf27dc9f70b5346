// Scratch memory that is kept between calls.
#pragma once

#include <stddef.h>

namespace thermosphere {

// Of the thread that runs a task; 64-byte aligned, contents undefined.
float* thread_arena(ptrdiff_t floats);
// Of the thread that makes a call, for what all its tasks share: packed weights, partial gradients.
float* call_arena(ptrdiff_t floats);

namespace {

// Takes pieces of an arena one after another, each a whole number of cache lines.
struct Arena {
  float* next;
  float* take(ptrdiff_t count) {
    float* at = next;
    next += (count + 15) / 16 * 16;
    return at;
  }
};

}  // namespace
}  // namespace thermosphere
