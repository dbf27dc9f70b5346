// Gradients of weights are summed over groups of a chain's work, the same groups whatever the threads, and
// the groups' sums in their order: the same bits for any number of threads.
#pragma once

#include "encoder_tensor.h"

namespace thermosphere {

// What is done once a chain, beside the groups, is cut into this many pieces, so that one chain keeps several
// cores busy there too.
constexpr int64_t chain_pieces = 8;

// Of `count` rows those that a piece has.
struct PieceRows {
  int first, last;
};
static inline PieceRows piece_rows(int count, int64_t piece) {
  return {static_cast<int>(count * piece / chain_pieces),
          static_cast<int>(count * (piece + 1) / chain_pieces)};
}

// out (rows × columns, t.row floats apart) = Σ_g partial_g over one piece of the tensor's rows.
static inline void add_partials(const EncoderTensor& t, const float* partial, ptrdiff_t stride,
                                int64_t groups, int64_t piece, float* out) {
  const int width = encoder_padded(t.columns);
  const PieceRows own = piece_rows(t.rows, piece);
  for (ptrdiff_t i = own.first; i < own.last; ++i)
    for (int j = 0; j < width; j += 16) {
      const float* in = partial + t.gradient + i * width + j;
      float sum[16];
      for (int k = 0; k < 16; ++k) sum[k] = in[k];
      for (int64_t g = 1; g < groups; ++g)
        for (int k = 0; k < 16; ++k) sum[k] += in[g * stride + k];
      const int count = t.columns - j < 16 ? t.columns - j : 16;
      __builtin_memcpy(out + i * t.row + j, sum, sizeof(float) * static_cast<size_t>(count));
    }
}

}  // namespace thermosphere
