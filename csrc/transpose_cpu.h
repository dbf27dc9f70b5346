// Transposition of padded rows, a square of vectors at a time in registers.
#pragma once

#include "tile_finish.h"

namespace thermosphere {
namespace {

#if defined(__clang__)
#define THERMOSPHERE_SHUFFLE2(a, b, mask) shuffle2(a, b, mask)
THERMOSPHERE_ALWAYS Vec shuffle2(Vec a, Vec b, IntVec mask) {
  Vec out{};
  for (int i = 0; i < lanes; ++i) out[i] = mask[i] < lanes ? a[mask[i]] : b[mask[i] - lanes];
  return out;
}
#else
#define THERMOSPHERE_SHUFFLE2(a, b, mask) __builtin_shuffle(a, b, mask)
#endif

// Each stage interleaves row i with row i + lanes/2; after log2(lanes) of them rows are columns.
THERMOSPHERE_ALWAYS void transpose_square(Vec (&m)[lanes]) {
  IntVec low{}, high{};
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + i % 2 * lanes;
    high[i] = low[i] + lanes / 2;
  }
#pragma GCC unroll 4
  for (int stage = 1; stage < lanes; stage *= 2) {
    Vec out[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      out[2 * i] = THERMOSPHERE_SHUFFLE2(m[i], m[i + lanes / 2], low);
      out[2 * i + 1] = THERMOSPHERE_SHUFFLE2(m[i], m[i + lanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) m[i] = out[i];
  }
}

// out (columns × padded(rows)) = scale · inᵀ, padding columns zero. Rows of `in` are padded.
[[maybe_unused]] static void transpose(int rows, int columns, const float* in, ptrdiff_t row, float scale,
                                       float* out) {
  const ptrdiff_t width = padded(rows);
  for (int top = 0; top < width; top += lanes)
    for (int left = 0; left < columns; left += lanes) {
      Vec square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        square[i] = top + i < rows ? load(in + (top + i) * row + left) * scale : Vec{};
      transpose_square(square);
      const int own = columns - left < lanes ? columns - left : lanes;
      for (int j = 0; j < own; ++j) store(out + (left + j) * width + top, square[j]);
    }
}

}  // namespace
}  // namespace thermosphere
