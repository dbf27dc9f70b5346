// Logits X Woutᵀ + bout at weighted rows, their cross-entropy and errors, for chains × rows; plain structs
// only. Sizes up to those of encoder_gradient.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace thermosphere {

// C chains, R rows of d features, V tokens.
struct MaskedCrossEntropyCall {
  int64_t chains, rows;
  int embedding, tokens;
  const float* x;            // (C, R, d)
  const float* output;       // (C, V, d)
  const float* output_bias;  // (C, V)
  const int64_t* targets;    // (C, R) in [0, V)
  const float* weights;      // (C, R)
  double* losses;            // (C) out: Σ weight · −ln softmax(logits)[target]
  double* errors;            // (C) out: Σ weight of the rows whose largest logit is not the target's
  float* logit_slope;        // (C, R, padded V): d loss / d logits; written by forward where not null
};

struct MaskedCrossEntropySlopes {
  const double* losses;  // (C)
  float* x;              // (C, R, d) out, as all below
  float* output;         // (C, V, d)
  float* output_bias;    // (C, V)
};

void masked_cross_entropy(const MaskedCrossEntropyCall& call, int threads);
void masked_cross_entropy_backward(const MaskedCrossEntropyCall& call, const MaskedCrossEntropySlopes& slopes,
                                   int threads);

}  // namespace thermosphere
