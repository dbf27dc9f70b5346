// Weights as products read them: panels of 32 columns one after another, rows padded with zeros.
#pragma once

#include "encoder_tensor.h"
#include "gemm_tile.h"

namespace thermosphere {
namespace {

struct PackedWeights {
  const float* packed;
  float* gradient;    // padded, added to; null: forward only
  const float* mask;  // fill_mask of the features of a norm

  const float* vector(const EncoderTensor& t) const { return packed + t.forward; }
  Right forward(const EncoderTensor& t) const {
    return Right{packed + t.forward, 32, 32 * static_cast<ptrdiff_t>(t.columns)};
  }
  Right backward(const EncoderTensor& t) const {
    return Right{packed + t.backward, 32, 32 * static_cast<ptrdiff_t>(t.rows)};
  }
  float* slope(const EncoderTensor& t) const { return gradient + t.gradient; }
};

// Panels of 32 columns of Wᵀ (columns × rows), zero where there is none. W's rows are `row` floats apart.
static void pack_transposed(int rows, int columns, const float* w, ptrdiff_t row, float* out) {
  for (int p = 0; p < rows; p += 32)
    for (int k = 0; k < columns; ++k)
      for (int j = 0; j < 32; ++j) *out++ = p + j < rows ? w[(p + j) * row + k] : 0.0f;
}

// Panels of 32 columns of W (rows × columns).
static void pack_plain(int rows, int columns, const float* w, ptrdiff_t row, float* out) {
  for (int p = 0; p < columns; p += 32)
    for (int k = 0; k < rows; ++k) {
      const int own = columns - p < 32 ? columns - p : 32;
      for (int j = 0; j < own; ++j) out[j] = w[k * row + p + j];
      for (int j = own; j < 32; ++j) out[j] = 0.0f;
      out += 32;
    }
}

// rows × columns -> rows × padded(columns).
static void pad_rows(ptrdiff_t rows, int columns, const float* in, ptrdiff_t row, float* out) {
  const int width = padded(columns);
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (int j = 0; j < width; ++j) *out++ = j < columns ? in[i * row + j] : 0.0f;
}

// W (rows × columns, t.row floats apart) to its place.
static void pack_tensor(const EncoderTensor& t, const float* w, float* packed) {
  if (t.backward >= 0) {
    pack_transposed(t.rows, t.columns, w, t.row, packed + t.forward);
    pack_plain(t.rows, t.columns, w, t.row, packed + t.backward);
    return;
  }
  pad_rows(t.rows, t.columns, w, t.row, packed + t.forward);
}

}  // namespace
}  // namespace thermosphere
