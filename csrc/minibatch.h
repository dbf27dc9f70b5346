// Mini-batch indices from the counter-based generator.
#pragma once

#include <stdint.h>

namespace thermosphere {

struct MinibatchDraw {
  uint64_t seed, step;
  uint32_t stream;
  int64_t chains, batch, examples;
  const int64_t* chain_ids;  // (C)
  int64_t* indices;          // (C, B) out, in [0, examples)
  float* weights;            // (C, B) out: 1/distinct at the first occurrence, 0 at repeats
};

void draw_minibatch(const MinibatchDraw& draw);

}  // namespace thermosphere
