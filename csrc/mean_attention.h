// The mean attention matrix of a sequence set, of every block of a transformer; plain structs only.
#pragma once

#include "encoder_gradient.h"

namespace thermosphere {

struct MeanAttentionCall {
  EncoderShape shape;
  PositionalCodes codes;
  int64_t chains, parameters, sequences;
  const float* weights;   // (C, N)
  const uint8_t* tokens;  // (S, n)
  double* mean;           // (C, L, n, n) out: A averaged over sequences, rows = queries
};

// Throws std::invalid_argument where N is not the shape's.
void mean_attention(const MeanAttentionCall& call, int threads);

}  // namespace thermosphere
