// One sequence's attention, keys and values X (n×d), queries Q (r×d):
//
//   S = Q Xᵀ / √d,  A = softmax over keys,  O = A X          (the projections around it are whole-batch
//   products)
//
// Kept transposed, Aᵀ (n × r): the softmax runs down columns, sixteen queries at a time, with no sum across a
// vector.
#pragma once

#include "gemm_tile.h"

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

// queries (r×d) at stride `row`, x (n×d) -> attention Aᵀ (n × padded(r)), out (r×d) at stride `row`. `work`:
// d × padded(r).
static void attention(int r, int n, int d, const float* queries, ptrdiff_t row, const float* x,
                      ptrdiff_t x_row, float* attention_t, float* out, float* work) {
  const int width = padded(r);
  transpose(r, d, queries, row, 1.0f / __builtin_sqrtf(static_cast<float>(d)), work);
  multiply(n, width, d, rows_of(x, x_row), plain(work, width), attention_t, width);
  softmax_columns(n, width, attention_t);
  multiply(r, padded(d), n, transposed(attention_t, width), plain(x, x_row), out, row);
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

}  // namespace
}  // namespace thermosphere
