// Logits of the masked rows, their cross-entropy (Eq. 26-27 of arXiv 2603.29529) and whether the
// most likely residue is wrong (Eq. 28-30).
#pragma once

#include "packed_weights_cpu.h"

namespace thermosphere {
namespace {

struct RowLoss {
  double loss, error;  // weighted sums
};

// Σ w ln z, z between 1 and the number of tokens. The rows of a sequence have one weight: one logarithm is
// taken of the product of their z.
class WeightedLogarithms {
 public:
  THERMOSPHERE_METHOD void add(double weight, double z) {
    if (weight != weight_ || product_ > 1e240) flush();
    weight_ = weight;
    product_ *= z;
  }
  THERMOSPHERE_METHOD double sum() {
    flush();
    return sum_;
  }

 private:
  THERMOSPHERE_METHOD void flush() {
    sum_ += weight_ * __builtin_log(product_);
    product_ = 1.0;
  }
  double weight_ = 0.0, product_ = 1.0, sum_ = 0.0;
};

// logits less their bias (rows × V, padded) in; their slope in place: weight (softmax - onehot), padding
// zero.
static RowLoss masked_cross_entropy(int rows, int tokens, const float* bias, const int32_t* targets,
                                    const float* weights, float* logits, ptrdiff_t row) {
  const int width = padded(tokens);
  RowLoss total{0.0, 0.0};
  WeightedLogarithms partitions;
  IntVec lane{};
  for (int j = 0; j < lanes; ++j) lane[j] = j;
  for (int i = 0; i < rows; ++i) {
    float* x = logits + i * row;
    Vec top = splat(-1e30f);
    for (int j = 0; j < width; j += lanes) {
      const Vec real = lane + j < tokens ? load(x + j) + load(bias + j) : splat(-1e30f);
      store(x + j, real);
      top = larger(top, real);
    }
    const float truth = x[targets[i]];
    const float most = largest(top);
    bool right = truth == most;  // and the first of equal ones
    for (int j = 0; right && j < targets[i]; ++j) right = x[j] != most;
    Vec partial{};
    for (int j = 0; j < width; j += lanes) {
      const Vec e = exp2_nonpositive((load(x + j) - most) * log2_of_e);
      store(x + j, e);
      partial += e;
    }
    const float partition = sum(partial);
    const double w = weights[i];
    total.loss += w * (static_cast<double>(most) - static_cast<double>(truth));
    partitions.add(w, static_cast<double>(partition));
    total.error += right ? 0.0 : w;
    const float share = weights[i] / partition;
    for (int j = 0; j < width; j += lanes) store(x + j, load(x + j) * share);
    x[targets[i]] -= weights[i];
  }
  total.loss += partitions.sum();
  return total;
}

// logits = X Woutᵀ + bout (rows × padded(V)) of rows of X `x_row` floats apart, and their loss; `logits` then
// holds the slope.
static RowLoss output_cross_entropy(int rows, int tokens, const PackedWeights& w, const HeadTensors& t,
                                    const float* x, ptrdiff_t x_row, const int32_t* targets,
                                    const float* weights, float* logits) {
  const int classes = padded(tokens);
  multiply(rows, classes, t.output.columns, rows_of(x, x_row), w.forward(t.output), logits, classes);
  return masked_cross_entropy(rows, tokens, w.vector(t.output_bias), targets, weights, logits, classes);
}

// From the slope of the logits to dX, overwritten, its rows as far apart as X's.
static void output_backward(int rows, int tokens, const PackedWeights& w, const HeadTensors& t,
                            const float* x, ptrdiff_t x_row, const float* logit_slope, float* x_slope) {
  const int classes = padded(tokens), wide = padded(t.output.columns);
  multiply_add(tokens, wide, rows, transposed(logit_slope, classes), plain(x, x_row), w.slope(t.output),
               wide);
  add_columns(rows, classes, logit_slope, classes, w.slope(t.output_bias));
  multiply(rows, wide, tokens, rows_of(logit_slope, classes), w.backward(t.output), x_slope, x_row);
}

}  // namespace
}  // namespace thermosphere
