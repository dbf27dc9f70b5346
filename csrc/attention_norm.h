// The attention layer of a block by itself, Y = LN(X_rows + softmax(X_rows Wqkᵀ Xᵀ / √d) X Wvoᵀ) γ + β, for
// chains × sequences; plain structs only. Sizes up to those of encoder_gradient.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace thermosphere {

// C chains, B sequences each of n rows of d features, r of them queries.
struct AttentionNormCall {
  int64_t chains, batch;
  int length, rows, embedding;
  const float* x;                         // (C, B, n, d)
  const int64_t* positions;               // (C, B, r) in [0, n), or null: every row, r = n
  const float *query_key, *value_output;  // (C, d, d)
  const float *gain, *bias;               // (C, d)
  float* out;                             // (C, B, r, d)
  // What backward reads; written by forward where not null (all or none).
  float *queries, *mixed, *normal;  // (C, B, r, padded d): X_rows Wqkᵀ, A X, the norm before gain and bias
  float* attention;                 // (C, B, n + 1, padded r): exp(Sᵀ - max), then a row of one over its sums
  float* deviation;                 // (C, B, r): 1/σ of the norm
};

struct AttentionNormSlopes {
  const float* out;                 // (C, B, r, d)
  float* x;                         // (C, B, n, d) out, as all below
  float *query_key, *value_output;  // (C, d, d)
  float *gain, *bias;               // (C, d)
};

void attention_norm(const AttentionNormCall& call, int threads);
void attention_norm_backward(const AttentionNormCall& call, const AttentionNormSlopes& slopes, int threads);

}  // namespace thermosphere
