// Weights as products read them: panels of 32 columns one after another, rows padded with zeros.
#pragma once

#include "encoder_tensor.h"
#include "gemm_tile.h"
#include "transpose_cpu.h"

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

// The panel of Wᵀ (columns × rows) that begins at W's row p, zero where there is none: squares of whole
// vectors turned in registers, what is left element by element. W's rows are `row` floats apart; `out` is
// the first panel.
static void pack_transposed_panel(int p, int rows, int columns, const float* w, ptrdiff_t row, float* out) {
  out += static_cast<ptrdiff_t>(p) * columns;
  for (int top = 0; top < 32; top += lanes) {
    int k = 0;
    if (p + top + lanes <= rows)
      for (; k + lanes <= columns; k += lanes) {
        Vec square[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) square[i] = load(w + (p + top + i) * row + k);
        transpose_square(square);
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) store(out + (k + j) * 32 + top, square[j]);
      }
    for (; k < columns; ++k)
      for (int j = top; j < top + lanes; ++j) out[k * 32 + j] = p + j < rows ? w[(p + j) * row + k] : 0.0f;
  }
}

// The panel of W (rows × columns) that begins at column p.
static void pack_plain_panel(int p, int rows, int columns, const float* w, ptrdiff_t row, float* out) {
  out += static_cast<ptrdiff_t>(p) * rows;
  const int own = columns - p < 32 ? columns - p : 32;
  for (int k = 0; k < rows; ++k) {
    for (int j = 0; j < own; ++j) out[j] = w[k * row + p + j];
    for (int j = own; j < 32; ++j) out[j] = 0.0f;
    out += 32;
  }
}

[[maybe_unused]] static void pack_transposed(int rows, int columns, const float* w, ptrdiff_t row,
                                             float* out) {
  for (int p = 0; p < rows; p += 32) pack_transposed_panel(p, rows, columns, w, row, out);
}

// rows × columns -> rows × padded(columns).
static void pad_rows(ptrdiff_t rows, int columns, const float* in, ptrdiff_t row, float* out) {
  const int width = padded(columns);
  for (ptrdiff_t i = 0; i < rows; ++i)
    for (int j = 0; j < width; ++j) *out++ = j < columns ? in[i * row + j] : 0.0f;
}

// W (rows × columns, t.row floats apart) to its place: those of its panels for which mine() is true, asked
// once for each.
template <class Mine>
THERMOSPHERE_ALWAYS void pack_tensor(const EncoderTensor& t, const float* w, float* packed,
                                     const Mine& mine) {
  if (t.backward < 0) {
    if (mine()) pad_rows(t.rows, t.columns, w, t.row, packed + t.forward);
    return;
  }
  for (int p = 0; p < t.rows; p += 32)
    if (mine()) pack_transposed_panel(p, t.rows, t.columns, w, t.row, packed + t.forward);
  for (int p = 0; p < t.columns; p += 32)
    if (mine()) pack_plain_panel(p, t.rows, t.columns, w, t.row, packed + t.backward);
}
static inline void pack_tensor(const EncoderTensor& t, const float* w, float* packed) {
  pack_tensor(t, w, packed, [] { return true; });
}

}  // namespace
}  // namespace thermosphere
