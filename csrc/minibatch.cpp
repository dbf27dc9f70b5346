#include "minibatch.h"

#include <vector>

#include "philox.h"

namespace thermosphere {

void draw_minibatch(const MinibatchDraw& d) {
  thread_local std::vector<bool> seen;  // nothing is allocated in steady state
  for (int64_t c = 0; c < d.chains; ++c) {
    const Draw draw =
        make_draw(d.seed, static_cast<Stream>(d.stream), static_cast<uint32_t>(d.chain_ids[c]), d.step);
    int64_t* indices = d.indices + c * d.batch;
    float* weights = d.weights + c * d.batch;
    seen.assign(static_cast<size_t>(d.examples), false);
    int64_t distinct = 0;
    for (int64_t b = 0; b < d.batch; ++b) {
      const Words words = draw_words(draw, static_cast<uint32_t>(b / 4));
      // High half of word × examples: uniform to examples / 2^32, 2e-7 for 1,000.
      const uint64_t product = static_cast<uint64_t>(words.word[b % 4]) * static_cast<uint64_t>(d.examples);
      const int64_t index = static_cast<int64_t>(product >> 32);
      const bool first = !seen[static_cast<size_t>(index)];
      seen[static_cast<size_t>(index)] = true;
      distinct += first ? 1 : 0;
      indices[b] = index;
      weights[b] = first ? 1.0f : 0.0f;
    }
    const float share = 1.0f / static_cast<float>(distinct);
    for (int64_t b = 0; b < d.batch; ++b) weights[b] *= share;
  }
}

}  // namespace thermosphere
