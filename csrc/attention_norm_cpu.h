// One sequence's attention at r of its rows, keys and values X (n×d), and the norm after it:
//
//   Q = X_rows Wqkᵀ,  S = Q Xᵀ / √d,  A = softmax over keys,  O = A X,  Y = LN(X_rows + O Wvoᵀ)
//
// Rows are padded (wide = padded(d)). A is kept transposed, Aᵀ (n × r): the softmax runs down columns,
// sixteen queries at a time, with no sum across a vector.
#pragma once

#include "layer_norm_cpu.h"
#include "packed_weights_cpu.h"

namespace thermosphere {
namespace {

// out (columns × padded(rows)) = scale · inᵀ, padding columns zero.
static void transpose(int rows, int columns, const float* in, ptrdiff_t row, float scale, float* out) {
  const int width = padded(rows);
  for (int j = 0; j < columns; ++j) {
    float* o = out + static_cast<ptrdiff_t>(j) * width;
    for (int i = 0; i < rows; ++i) o[i] = scale * in[i * row + j];
    for (int i = rows; i < width; ++i) o[i] = 0.0f;
  }
}

// Softmax of every column of a (n × width), in place.
static void softmax_columns(int n, int width, float* a) {
  for (int c = 0; c < width; c += lanes) {
    Vec top = load(a + c);
    for (int j = 1; j < n; ++j) top = larger(top, load(a + static_cast<ptrdiff_t>(j) * width + c));
    Vec total{};
    for (int j = 0; j < n; ++j) {
      float* at = a + static_cast<ptrdiff_t>(j) * width + c;
      const Vec e = exp_nonpositive(load(at) - top);
      store(at, e);
      total += e;
    }
    const Vec share = 1.0f / total;
    for (int j = 0; j < n; ++j) {
      float* at = a + static_cast<ptrdiff_t>(j) * width + c;
      store(at, load(at) * share);
    }
  }
}

// queries (r×d) at stride `row`, x (n×d) -> Aᵀ (n × padded(r)). `work`: d × padded(r).
static void attention_matrix(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                             ptrdiff_t x_row, float* attention_t, float* work) {
  const int width = padded(r);
  transpose(r, d, queries, row, 1.0f / __builtin_sqrtf(static_cast<float>(d)), work);
  multiply(n, width, d, rows_of(x, x_row), plain(work, width), attention_t, width);
  softmax_columns(n, width, attention_t);
}

// The same, and out = A X (r×d) at stride `row`.
static void attention(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                      ptrdiff_t x_row, float* attention_t, float* out, float* work) {
  attention_matrix(r, n, d, queries, row, x, x_row, attention_t, work);
  multiply(r, padded(d), n, transposed(attention_t, padded(r)), plain(x, x_row), out, row);
}

// From dO (r×d): dQ (r×d) and dX (n×d), both overwritten. `work`: d × padded(r) + n × padded(r).
static void attention_backward(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                               ptrdiff_t x_row, const float* attention_t, const float* out_slope,
                               float* query_slope, float* x_slope, float* work) {
  const int width = padded(r), wide = padded(d);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  float* score_slope = work + static_cast<ptrdiff_t>(d) * width;  // dAᵀ, then dSᵀ (n × width)
  transpose(r, d, out_slope, row, 1.0f, work);
  multiply(n, width, d, rows_of(x, x_row), plain(work, width), score_slope, width);
  for (int c = 0; c < width; c += lanes) {
    Vec dot{};
    for (int j = 0; j < n; ++j) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(j) * width + c;
      dot += load(attention_t + at) * load(score_slope + at);
    }
    for (int j = 0; j < n; ++j) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(j) * width + c;
      store(score_slope + at, load(attention_t + at) * (load(score_slope + at) - dot) * scale);
    }
  }
  multiply(r, wide, n, transposed(score_slope, width), plain(x, x_row), query_slope, row);
  multiply(n, wide, r, rows_of(attention_t, width), plain(out_slope, row), x_slope, x_row);
  multiply_add(n, wide, r, rows_of(score_slope, width), plain(queries, row), x_slope, x_row);
}

// Y = LN(X + O Wvoᵀ) for r rows; x̂ in `normal`, 1/σ in `deviation`.
static void value_norm(int r, int d, const PackedWeights& w, const AttentionNormTensors& t, const float* x,
                       const float* mixed, float* normal, float* deviation, float* y) {
  const int wide = padded(d);
  multiply(r, wide, d, rows_of(mixed, wide), w.forward(t.value_output), normal, wide);
  for (ptrdiff_t i = 0; i < static_cast<ptrdiff_t>(r) * wide; i += lanes)
    store(normal + i, load(normal + i) + load(x + i));
  layer_norm(r, d, w.mask, w.vector(t.gain), w.vector(t.bias), normal, wide, deviation, y);
}

// From dY in `slope`: dO, and the residual's share of dX in `slope`.
static void value_norm_backward(int r, int d, const PackedWeights& w, const AttentionNormTensors& t,
                                const float* mixed, const float* normal, const float* deviation, float* slope,
                                float* mixed_slope) {
  const int wide = padded(d);
  layer_norm_backward(r, d, w.vector(t.gain), normal, deviation, slope, wide, w.slope(t.gain),
                      w.slope(t.bias));
  multiply_add(d, wide, r, transposed(slope, wide), plain(mixed, wide), w.slope(t.value_output), wide);
  multiply(r, wide, d, rows_of(slope, wide), w.backward(t.value_output), mixed_slope, wide);
}

// What backward reads.
struct AttentionNormState {
  float *queries, *mixed, *normal;  // Q, O, x̂: r × wide
  float* attention;                 // Aᵀ: n × padded(r)
  float* deviation;                 // 1/σ: r
};

// `work`: d × padded(r).
static void attention_norm(int r, int n, int d, const PackedWeights& w, const AttentionNormTensors& t,
                           const float* x_rows, const float* x, const AttentionNormState& s, float* y,
                           float* work) {
  const int wide = padded(d);
  multiply(r, wide, d, rows_of(x_rows, wide), w.forward(t.query_key), s.queries, wide);
  attention(r, n, d, s.queries, wide, x, wide, s.attention, s.mixed, work);
  value_norm(r, d, w, t, x_rows, s.mixed, s.normal, s.deviation, y);
}

// From dY in `slope`: what reaches X as keys and values in `x_slope` (n × wide, overwritten), what reaches
// X_rows as queries and residual in `slope`. mixed_slope, query_slope: r × wide; work: (d + n) × padded(r).
static void attention_norm_backward(int r, int n, int d, const PackedWeights& w,
                                    const AttentionNormTensors& t, const float* x_rows, const float* x,
                                    const AttentionNormState& s, float* slope, float* x_slope,
                                    float* mixed_slope, float* query_slope, float* work) {
  const int wide = padded(d);
  value_norm_backward(r, d, w, t, s.mixed, s.normal, s.deviation, slope, mixed_slope);
  attention_backward(r, n, d, s.queries, wide, x, wide, s.attention, mixed_slope, query_slope, x_slope, work);
  multiply_add(d, wide, r, transposed(query_slope, wide), plain(x_rows, wide), w.slope(t.query_key), wide);
  multiply_add(r, wide, d, rows_of(query_slope, wide), w.backward(t.query_key), slope, wide);
}

}  // namespace
}  // namespace thermosphere
