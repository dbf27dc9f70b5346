// Sums over the sites of a sequence by the residue there: P_ia = Σ_j A_ij [s_j = a].
#pragma once

#include "encoder_gradient.h"
#include "gemm_tile.h"

namespace thermosphere {
namespace {

typedef int32_t IntVec4 __attribute__((vector_size(16)));

THERMOSPHERE_ALWAYS Vec4 load4(const float* p) {
  Vec4 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
THERMOSPHERE_ALWAYS void store4(float* p, Vec4 v) { __builtin_memcpy(p, &v, sizeof v); }

THERMOSPHERE_ALWAYS Vec4 unpack_low(Vec4 a, Vec4 b) { return Vec4{a[0], b[0], a[1], b[1]}; }
THERMOSPHERE_ALWAYS Vec4 unpack_high(Vec4 a, Vec4 b) { return Vec4{a[2], b[2], a[3], b[3]}; }

// The 4 × 4 matrix of four rows, transposed.
THERMOSPHERE_ALWAYS void transpose(Vec4 (&m)[4]) {
  const Vec4 a = unpack_low(m[0], m[2]), b = unpack_high(m[0], m[2]);
  const Vec4 c = unpack_low(m[1], m[3]), d = unpack_high(m[1], m[3]);
  m[0] = unpack_low(a, c);
  m[1] = unpack_high(a, c);
  m[2] = unpack_low(b, d);
  m[3] = unpack_high(b, d);
}

// Four rows as the lanes of one vector: quads[j] holds column j of each. Up to the next multiple of four
// columns are read and written.
void interleave(int columns, const float* const (&row)[4], Vec4* quads) {
  for (int j = 0; j < columns; j += 4) {
    Vec4 in[4];
    for (int r = 0; r < 4; ++r) in[r] = load4(row[r] + j);
    transpose(in);
    for (int k = 0; k < 4; ++k) quads[j + k] = in[k];
  }
}

// Sums of up to four rows of one sequence at once: four sums cost one addition in memory, which has to wait
// for the last one into the same token (3 % of a gradient of tf1-small against a row at a time).
struct TokenSums {
  Vec4 by_token[padded(encoder_tokens_max)];

  // values: `rows` ≤ 4 rows of padded(n), `stride` apart.
  void add(const uint8_t* tokens, int n, int classes, int rows, const float* values, ptrdiff_t stride) {
    Vec4 quads[encoder_length_max];
    const int last = rows - 1;  // where there are fewer than four rows, the last stands in
    interleave(n,
               {values, values + (last < 1 ? last : 1) * stride, values + (last < 2 ? last : 2) * stride,
                values + last * stride},
               quads);
    for (int c = 0; c < classes; ++c) by_token[c] = Vec4{};
    for (int j = 0; j < n; ++j) by_token[tokens[j]] += quads[j];
  }

  // Row r's sums are added to out[r], classes of them.
  void write(int classes, int rows, float* const (&out)[4]) const {
    for (int c = 0; c < classes; c += 4) {
      Vec4 in[4];
      for (int k = 0; k < 4; ++k) in[k] = by_token[c + k];
      transpose(in);
      for (int r = 0; r < rows; ++r) store4(out[r] + c, load4(out[r] + c) + in[r]);
    }
  }
};

}  // namespace
}  // namespace thermosphere
