// Gradients of weights are summed over groups of a chain's work, the same groups whatever the threads, and
// the groups' sums in their order: the same bits for any number of threads.
#pragma once

#include "encoder_tensor.h"

namespace thermosphere {

// A tensor's partial sums are added in this many pieces, so that one chain keeps several cores busy.
constexpr int64_t sum_pieces = 8;

// out (rows × columns, t.row floats apart) = Σ_g partial_g over one piece of the tensor's rows.
static inline void add_partials(const EncoderTensor& t, const float* partial, ptrdiff_t stride,
                                int64_t groups, int64_t piece, float* out) {
  const int width = encoder_padded(t.columns);
  for (int64_t i = t.rows * piece / sum_pieces; i < t.rows * (piece + 1) / sum_pieces; ++i) {
    const float* in = partial + t.gradient + i * width;
    for (int j = 0; j < t.columns; ++j) {
      float sum = in[j];
      for (int64_t g = 1; g < groups; ++g) sum += in[g * stride + j];
      out[i * t.row + j] = sum;
    }
  }
}

}  // namespace thermosphere
