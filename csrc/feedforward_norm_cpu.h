// Z = LN(Y + k ∘ ((relu(Y W1ᵀ + b1) + code of the row's site) W2ᵀ + b2)), row by row; k: dropout's factors,
// or 1.
#pragma once

#include "dropout_cpu.h"
#include "layer_norm_cpu.h"
#include "packed_weights_cpu.h"

namespace thermosphere {
namespace {

// Rows of hidden activations get a line more than a power of two, or their columns share few cache sets.
THERMOSPHERE_ALWAYS int hidden_row(int m) { return padded(m) % 64 == 0 ? padded(m) + 16 : padded(m); }

struct FeedforwardNormState {
  float* active;  // relu, rows × active_row
  ptrdiff_t active_row;
  float* hidden;                // relu + code, rows × hidden_row(m)
  float *normal, *deviation;    // ẑ (rows × padded(d)) and 1/σ
  const float* kept = nullptr;  // dropout's factors, rows × padded(d); null: nothing is dropped
};

// hidden_i = active_i + code[site_i].
THERMOSPHERE_ALWAYS void add_code(const float* active, const float* code, int width, float* hidden) {
  for (int j = 0; j < width; j += lanes) store(hidden + j, load(active + j) + load(code + j));
}

// y, z: rows × padded(d); code: (n, padded(m)).
static void feedforward_norm(int rows, int d, int m, const PackedWeights& w, const FeedforwardNormTensors& t,
                             const float* y, const int* site, const float* code,
                             const FeedforwardNormState& s, float* z) {
  const int wide = padded(d), high = hidden_row(m);
  multiply(rows, padded(m), d, rows_of(y, wide), w.forward(t.weight1),
           Rectify{s.active, s.active_row, s.hidden, high, w.vector(t.hidden_bias), code, padded(m), site});
  const Left hidden = rows_of(s.hidden, high);
  if (s.kept != nullptr)
    multiply(rows, wide, m, hidden, w.forward(t.weight2),
             DroppedResidual{s.normal, y, s.kept, wide, w.vector(t.out_bias)});
  else
    multiply(rows, wide, m, hidden, w.forward(t.weight2), Residual{s.normal, y, wide, w.vector(t.out_bias)});
  layer_norm(rows, d, w.mask, w.vector(t.gain), w.vector(t.bias), s.normal, wide, s.deviation, z);
}

// From dZ in `slope` to dY in its place. work: rows × hidden_row(m). With dropout ẑ is overwritten.
static void feedforward_norm_backward(int rows, int d, int m, const PackedWeights& w,
                                      const FeedforwardNormTensors& t, const float* y,
                                      const FeedforwardNormState& s, float* slope, float* work) {
  const int wide = padded(d), high = hidden_row(m);
  layer_norm_backward(rows, d, w.vector(t.gain), s.normal, s.deviation, slope, wide, w.slope(t.gain),
                      w.slope(t.bias));
  float* out_slope = s.kept != nullptr ? s.normal : slope;  // of what k multiplies
  if (s.kept != nullptr) drop(static_cast<ptrdiff_t>(rows) * wide, slope, s.kept, out_slope);
  add_columns(rows, wide, out_slope, wide, w.slope(t.out_bias));
  multiply_add(d, padded(m), rows, transposed(out_slope, wide), plain(s.hidden, high), w.slope(t.weight2),
               padded(m));
  multiply(rows, padded(m), d, rows_of(out_slope, wide), w.backward(t.weight2),
           Gate{work, high, s.active, s.active_row, w.slope(t.hidden_bias)});
  multiply_add(m, wide, rows, transposed(work, high), plain(y, wide), w.slope(t.weight1), wide);
  multiply_add(rows, wide, m, rows_of(work, high), w.backward(t.weight1), slope, wide);  // + residual
}

}  // namespace
}  // namespace thermosphere
