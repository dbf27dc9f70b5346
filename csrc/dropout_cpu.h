// Dropout: every element of an activation is dropped with one probability, the others are divided by the
// probability to be kept. A factor is a function of (seed, chain, position in the batch, activation, element)
// alone: 16 bits of a counter's 128, eight elements a counter.
#pragma once

#include "arena.h"
#include "encoder_gradient.h"
#include "philox_block_cpu.h"
#include "vector_math.h"

namespace thermosphere {
namespace {

// The factors of one sequence's activations, one activation after another in the order of the forward pass.
// A block of 32 counters gives 256 elements: element e the half word e / 32 of counter e % 32. Every
// activation begins with a block of its own.
class DropoutSource {
 public:
  DropoutSource() = default;  // drops nothing
  DropoutSource(const Dropout& dropout, uint32_t chain, uint32_t first_counter)
      : draw_(make_draw(dropout.seed, Stream::dropout, chain, 0)),
        counter_(first_counter),
        threshold_(dropout.threshold),
        kept_(65536.0f / static_cast<float>(65536u - dropout.threshold)) {}

  // Factors of an activation of so many floats, 0 or 1/(1 - rate); null where nothing is dropped.
  float* next(Arena& arena, ptrdiff_t floats) {
    if (threshold_ == 0) return nullptr;
    float* factors = arena.take((floats + block - 1) / block * block);
    fill(floats, factors);
    return factors;
  }

  // out: whole blocks of 256.
  void fill(ptrdiff_t floats, float* out) {
    for (ptrdiff_t first = 0; first < floats; first += block) {
      WordBlock words;
      make_words(draw_, counter_, counters_in_order, words);
      counter_ += block_counters;
      for (int half = 0; half < 8; ++half)
        for (int i = 0; i < block_counters; ++i) {
          const uint32_t bits = words.word[half / 2][i] >> (16 * (half % 2)) & 0xFFFFu;
          *out++ = bits < threshold_ ? 0.0f : kept_;
        }
    }
  }

  static constexpr int block = dropout_block;

 private:
  Draw draw_{};
  uint32_t counter_ = 0, threshold_ = 0;
  float kept_ = 1.0f;
};
static_assert(dropout_block == 8 * block_counters);

// out = x ∘ factors, floats a multiple of 16.
[[maybe_unused]] static void drop(ptrdiff_t floats, const float* x, const float* factors, float* out) {
  for (ptrdiff_t i = 0; i < floats; i += lanes) store(out + i, load(x + i) * load(factors + i));
}

}  // namespace
}  // namespace thermosphere
