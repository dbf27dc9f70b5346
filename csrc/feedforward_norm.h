// The feed-forward layer of a block by itself, Z = LN(Y + (relu(Y W1ᵀ + b1) + code[position]) W2ᵀ + b2) γ +
// β, for chains × rows; plain structs only. Sizes up to those of encoder_gradient.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace thermosphere {

// C chains, R = B r rows of d features, m hidden. Row i of a chain is at site positions[i], or i mod r.
struct FeedforwardNormCall {
  int64_t chains, rows;
  int length, period, embedding, hidden;  // n, r, d, m
  const float* y;                         // (C, R, d)
  const int64_t* positions;               // (C, R) in [0, n), or null
  const float* weight1;                   // (C, m, d)
  const float* hidden_bias;               // (C, m)
  const float* weight2;                   // (C, d, m)
  const float *out_bias, *gain, *bias;    // (C, d)
  const float* code;                      // (n, m)
  float* out;                             // (C, R, d)
  // What backward reads; written by forward where not null (all or none).
  float* active;     // (C, R, padded m): relu(Y W1ᵀ + b1)
  float* normal;     // (C, R, padded d): the norm before gain and bias
  float* deviation;  // (C, R): 1/σ of the norm
};

struct FeedforwardNormSlopes {
  const float* out;               // (C, R, d)
  float* y;                       // (C, R, d) out, as all below
  float* weight1;                 // (C, m, d)
  float* hidden_bias;             // (C, m)
  float* weight2;                 // (C, d, m)
  float *out_bias, *gain, *bias;  // (C, d)
};

void feedforward_norm(const FeedforwardNormCall& call, int threads);
void feedforward_norm_backward(const FeedforwardNormCall& call, const FeedforwardNormSlopes& slopes,
                               int threads);

}  // namespace thermosphere
