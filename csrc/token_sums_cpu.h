// Sums over the sites of a sequence by the residue there: P_ia = Σ_j A_ij [s_j = a].
#pragma once

#include "encoder_gradient.h"
#include "transpose_cpu.h"

namespace thermosphere {
namespace {

// Sums of as many rows of one sequence as a vector has elements, at once: rows become the elements of one
// vector a site, and one addition in memory serves all of them, which has to wait for the last one into the
// same token.
struct TokenSums {
  Vec by_token[padded(encoder_tokens_max)];

  // values: `rows` ≤ lanes rows of padded(n), `stride` apart.
  void add(const uint8_t* tokens, int n, int classes, int rows, const float* values, ptrdiff_t stride) {
    for (int c = 0; c < classes; ++c) by_token[c] = Vec{};
    for (int left = 0; left < n; left += lanes) {
      Vec square[lanes];
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) square[r] = r < rows ? load(values + r * stride + left) : Vec{};
      transpose_square(square);
      const int own = n - left < lanes ? n - left : lanes;
      for (int j = 0; j < own; ++j) by_token[tokens[left + j]] += square[j];
    }
  }

  // Row r's sums are added to out(r), classes of them.
  template <class Out>
  THERMOSPHERE_METHOD void write(int classes, int rows, const Out& out) const {
    for (int c = 0; c < classes; c += lanes) {
      Vec square[lanes];
#pragma GCC unroll 16
      for (int k = 0; k < lanes; ++k) square[k] = by_token[c + k];
      transpose_square(square);
      for (int r = 0; r < rows; ++r) {
        float* to = out(r) + c;
        store(to, load(to) + square[r]);
      }
    }
  }
};

}  // namespace
}  // namespace thermosphere
