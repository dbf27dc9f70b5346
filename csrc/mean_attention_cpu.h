// The attention matrices of all blocks, every site a query, added up over sequences.
#pragma once

#include "encoder_rows_cpu.h"

namespace thermosphere {
namespace {

// sums (n × padded(n)) += Aᵀ = Pᵀ z, float64: 10⁴ sequences in float32 would lose the last three digits.
void add_matrix(int n, const float* attention_t, double* sums) {
  const int width = padded(n);
  const float* share = attention_t + static_cast<ptrdiff_t>(n) * width;
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < width; ++i)
      sums[j * width + i] += static_cast<double>(attention_t[j * width + i] * share[i]);
}

// Adds Aᵀ of each block of sequences [first, last) to sums (L × n × padded(n)).
void add_attention(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes,
                   const float* packed, const uint8_t* tokens, int64_t first, int64_t last, float* memory,
                   double* sums) {
  const int n = s.length, d = s.embedding, wide = padded(d);
  const ptrdiff_t matrix = static_cast<ptrdiff_t>(n) * padded(n);
  Arena arena{memory};
  float* mask = arena.take(wide);
  fill_mask(d, mask);
  const Model model{{packed, nullptr, mask}, s, at, codes};
  int every[encoder_length_max];
  for (int j = 0; j < n; ++j) every[j] = j;
  float* work = arena.take(static_cast<ptrdiff_t>(d) * padded(n));
  BlockState b = make_block(arena, s, n, padded(n));
  for (int64_t sequence = first; sequence < last; ++sequence) {
    embed(model, tokens + sequence * n, b.x);
    for (int l = 0; l < s.blocks - 1; ++l) {
      block_attention(model, at.block[l], b, n, b.x, work);
      block_feedforward(model, at.block[l], b, n, every);
      add_matrix(n, b.attention, sums + l * matrix);
      float* spent = b.x;
      b.x = b.out;
      b.out = spent;
    }
    const int l = s.blocks - 1;
    multiply(n, wide, d, rows_of(b.x, wide), model.forward(at.block[l].query_key), b.queries, wide);
    attention_matrix(n, n, d, b.queries, wide, b.x, wide, b.attention, work);
    add_matrix(n, b.attention, sums + l * matrix);
  }
}

}  // namespace
}  // namespace thermosphere
