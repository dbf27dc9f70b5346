// Cross-entropy of the masked rows (Eq. 26-27 of arXiv 2603.29529) and whether the most likely residue is
// wrong (Eq. 28-30).
#pragma once

#include "gemm_tile.h"

namespace thermosphere {
namespace {

struct RowLoss {
  double loss, error;  // weighted sums
};

// logits (rows × V, padded) in; their slope in place: weight (softmax - onehot), padding zero.
static RowLoss masked_cross_entropy(int rows, int tokens, const int32_t* targets, const float* weights,
                                    float* logits, ptrdiff_t row) {
  const int width = padded(tokens);
  RowLoss total{0.0, 0.0};
  for (int i = 0; i < rows; ++i) {
    float* x = logits + i * row;
    const float truth = x[targets[i]];
    for (int j = tokens; j < width; ++j) x[j] = -1e30f;
    Vec top = load(x);
    for (int j = lanes; j < width; j += lanes) top = larger(top, load(x + j));
    const float most = largest(top);
    int best = 0;
    while (x[best] != most && best < tokens - 1) ++best;
    Vec partial{};
    for (int j = 0; j < width; j += lanes) {
      const Vec e = exp_nonpositive(load(x + j) - most);
      store(x + j, e);
      partial += e;
    }
    const float partition = sum(partial);
    const double w = weights[i];
    total.loss += w * (static_cast<double>(most) - static_cast<double>(truth) +
                       __builtin_log(static_cast<double>(partition)));
    total.error += best == targets[i] ? 0.0 : w;
    const float share = weights[i] / partition;
    for (int j = 0; j < width; j += lanes) store(x + j, load(x + j) * share);
    x[targets[i]] -= weights[i];
  }
  return total;
}

}  // namespace
}  // namespace thermosphere
