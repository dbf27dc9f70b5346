// Scratch memory that is kept between calls.
#pragma once

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace thermosphere {

// Of the thread that runs a task; 64-byte aligned, contents undefined.
float* thread_arena(ptrdiff_t floats);
// Of the thread that makes a call, for what all its tasks share: packed weights, partial gradients.
float* call_arena(ptrdiff_t floats);

// Floats left behind every piece of an arena: none, but where AddressSanitizer watches them.
#if defined(__SANITIZE_ADDRESS__)
constexpr int arena_gap = 16;
#else
constexpr int arena_gap = 0;
#endif

namespace {

// Takes pieces of an arena one after another, each a whole number of cache lines.
struct Arena {
  float* next;
  float* take(ptrdiff_t count) {
    float* at = next;
    next += (count + 15) / 16 * 16;
#if defined(__SANITIZE_ADDRESS__)
    // A line behind every piece that nothing may touch: the allocator sees one block only.
    ASAN_UNPOISON_MEMORY_REGION(at, sizeof(float) * static_cast<size_t>(next - at));
    ASAN_POISON_MEMORY_REGION(next, sizeof(float) * arena_gap);
    next += arena_gap;
#endif
    return at;
  }
};

}  // namespace
}  // namespace thermosphere
