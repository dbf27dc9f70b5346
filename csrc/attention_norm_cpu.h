// One sequence's attention at r of its rows, keys and values X (n×d), and the norm after it:
//
//   Q = X_rows Wqkᵀ,  S = Q Xᵀ / √d,  A = softmax over keys,  O = A X,  Y = LN(X_rows + O Wvoᵀ)
//
// Rows are padded (wide = padded(d)). A is kept transposed and before its division by the sums, Pᵀ (n × r) =
// 2^(Sᵀ log2 e - max): the softmax runs down columns, a vector of queries at a time, with no sum across a
// vector, and the division is made where rows are fewer than keys: O = z (P X), z = 1/Σ. After the n rows of
// Pᵀ lies one of z.
#pragma once

#include "dropout_cpu.h"
#include "encoder_gradient.h"
#include "layer_norm_cpu.h"
#include "packed_weights_cpu.h"
#include "transpose_cpu.h"

namespace thermosphere {
namespace {

// P of each column of a (n × width), whose largest element is in `top`; 1/Σ in the row after the last.
static void softmax_columns(int n, int first, int count, int width, const float* top, float* a) {
  for (int c = first; c < first + count; c += lanes) {
    const Vec most = load(top + c);
    Vec total{};
    for (int j = 0; j < n; ++j) {
      float* at = a + static_cast<ptrdiff_t>(j) * width + c;
      const Vec e = exp2_nonpositive(load(at) - most);
      store(at, e);
      total += e;
    }
    store(a + static_cast<ptrdiff_t>(n) * width + c, 1.0f / total);
  }
}

// queries (r×d) at stride `row`, x (n×d) -> Pᵀ and z, (n + 1) × padded(r). `work`: d × padded(r). A panel of
// 32 queries at a time: its scores are still in the first-level cache when their exponentials are taken.
static void attention_matrix(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                             ptrdiff_t x_row, float* attention_t, float* work) {
  const int width = padded(r);
  transpose(r, d, queries, row, log2_of_e / __builtin_sqrtf(static_cast<float>(d)), work);
  float top[encoder_length_max];
  for (int c = 0; c < width; c += lanes) store(top + c, splat(-__builtin_inff()));
  for (int c = 0; c < width; c += panel) {
    const int count = width - c < panel ? width - c : panel;
    multiply_columns(n, c, count, d, rows_of(x, x_row), plain(work, width),
                     KeepLargest{attention_t, width, top});
    softmax_columns(n, c, count, width, top, attention_t);
  }
}

// The same, and out = A X (r×d) at stride `row`.
static void attention(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                      ptrdiff_t x_row, float* attention_t, float* out, float* work) {
  const int width = padded(r);
  attention_matrix(r, n, d, queries, row, x, x_row, attention_t, work);
  multiply(r, padded(d), n, transposed(attention_t, width), plain(x, x_row),
           ScaleRows{out, row, attention_t + static_cast<ptrdiff_t>(n) * width});
}

// From z dO (r×d): dQ (r×d) and dX (n×d), both overwritten. `work`: d × padded(r) + n × padded(r).
static void attention_backward(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                               ptrdiff_t x_row, const float* attention_t, const float* out_slope,
                               float* query_slope, float* x_slope, float* work) {
  const int width = padded(r), wide = padded(d);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const float* share = attention_t + static_cast<ptrdiff_t>(n) * width;
  float* score_slope = work + static_cast<ptrdiff_t>(d) * width;  // z dAᵀ, then dSᵀ (n × width)
  transpose(r, d, out_slope, row, 1.0f, work);
  for (int first = 0; first < width; first += panel) {
    const int count = width - first < panel ? width - first : panel;
    multiply_columns(n, first, count, d, rows_of(x, x_row), plain(work, width),
                     Overwrite{score_slope, width});
    for (int c = first; c < first + count; c += lanes) {
      Vec dot{};  // Σ_j A_ij dA_ij
      for (int j = 0; j < n; ++j) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(j) * width + c;
        dot += load(attention_t + at) * load(score_slope + at);
      }
      const Vec mean = dot * load(share + c);
      for (int j = 0; j < n; ++j) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(j) * width + c;
        store(score_slope + at, load(attention_t + at) * ((load(score_slope + at) - mean) * scale));
      }
    }
  }
  multiply(r, wide, n, transposed(score_slope, width), plain(x, x_row), query_slope, row);
  multiply(n, wide, r, rows_of(attention_t, width), plain(out_slope, row), x_slope, x_row);
  multiply_add(n, wide, r, rows_of(score_slope, width), plain(queries, row), x_slope, x_row);
}

// Y = LN(X + k ∘ (O Wvoᵀ)) for r rows; x̂ in `normal`, 1/σ in `deviation`. kept: dropout's factors k, or null.
static void value_norm(int r, int d, const PackedWeights& w, const AttentionNormTensors& t, const float* x,
                       const float* mixed, const float* kept, float* normal, float* deviation, float* y) {
  const int wide = padded(d);
  const Left rows = rows_of(mixed, wide);
  if (kept != nullptr)
    multiply(r, wide, d, rows, w.forward(t.value_output), DroppedResidual{normal, x, kept, wide, nullptr});
  else
    multiply(r, wide, d, rows, w.forward(t.value_output), Residual{normal, x, wide, nullptr});
  layer_norm(r, d, w.mask, w.vector(t.gain), w.vector(t.bias), normal, wide, deviation, y);
}

// From dY to the slope of X + k ∘ (O Wvoᵀ), in `slope`; that of O Wvoᵀ is then in `value_slope`, which
// without dropout is `slope` itself.
static void value_norm_backward(int r, int d, const PackedWeights& w, const AttentionNormTensors& t,
                                const float* mixed, const float* normal, const float* deviation, float* slope,
                                float* value_slope, const float* kept = nullptr) {
  const int wide = padded(d);
  layer_norm_backward(r, d, w.vector(t.gain), normal, deviation, slope, wide, w.slope(t.gain),
                      w.slope(t.bias));
  if (kept != nullptr) drop(static_cast<ptrdiff_t>(r) * wide, slope, kept, value_slope);
  multiply_add(d, wide, r, transposed(value_slope, wide), plain(mixed, wide), w.slope(t.value_output), wide);
}

// What backward reads.
struct AttentionNormState {
  float *queries, *mixed, *normal;  // Q, O, x̂: r × wide
  float* attention;                 // Pᵀ and z: (n + 1) × padded(r)
  float* deviation;                 // 1/σ: r
  const float* kept = nullptr;      // dropout's factors of O Wvoᵀ, r × wide; null: nothing is dropped
};

// `work`: d × padded(r).
static void attention_norm(int r, int n, int d, const PackedWeights& w, const AttentionNormTensors& t,
                           const float* x_rows, const float* x, const AttentionNormState& s, float* y,
                           float* work) {
  const int wide = padded(d);
  multiply(r, wide, d, rows_of(x_rows, wide), w.forward(t.query_key), s.queries, wide);
  attention(r, n, d, s.queries, wide, x, wide, s.attention, s.mixed, work);
  value_norm(r, d, w, t, x_rows, s.mixed, s.kept, s.normal, s.deviation, y);
}

// From dY in `slope`: what reaches X as keys and values in `x_slope` (n × wide, overwritten), what reaches
// X_rows as queries and residual in `slope`. mixed_slope, query_slope: r × wide; work: (d + n) × padded(r).
static void attention_norm_backward(int r, int n, int d, const PackedWeights& w,
                                    const AttentionNormTensors& t, const float* x_rows, const float* x,
                                    const AttentionNormState& s, float* slope, float* x_slope,
                                    float* mixed_slope, float* query_slope, float* work) {
  const int wide = padded(d);
  float* value_slope = s.kept != nullptr ? query_slope : slope;
  value_norm_backward(r, d, w, t, s.mixed, s.normal, s.deviation, slope, value_slope, s.kept);
  multiply(r, wide, d, rows_of(value_slope, wide), w.backward(t.value_output),
           ScaleRows{mixed_slope, wide, s.attention + static_cast<ptrdiff_t>(n) * padded(r)});
  attention_backward(r, n, d, s.queries, wide, x, wide, s.attention, mixed_slope, query_slope, x_slope, work);
  multiply_add(d, wide, r, transposed(query_slope, wide), plain(x_rows, wide), w.slope(t.query_key), wide);
  multiply_add(r, wide, d, rows_of(query_slope, wide), w.backward(t.query_key), slope, wide);
}

}  // namespace
}  // namespace thermosphere
