// Row-wise layer norm: y = x̂ γ + β, x̂ = (x - mean) / sqrt(var + 1e-5). Rows are padded; padding holds zeros.
#pragma once

#include "gemm_tile.h"

namespace thermosphere {
namespace {

constexpr float norm_epsilon = 1e-5f;

// 1 in the first `size` elements of a padded row, 0 after: a constant of the model, made once.
THERMOSPHERE_ALWAYS void fill_mask(int size, float* mask) {
  for (int j = 0; j < padded(size); ++j) mask[j] = j < size ? 1.0f : 0.0f;
}

// x (rows × size) in; x̂ in its place, 1/σ a row, and y.
static void layer_norm(int rows, int size, const float* mask, const float* gain, const float* bias, float* x,
                       ptrdiff_t row, float* inverse_deviation, float* y) {
  const int width = padded(size);
  const float share = 1.0f / static_cast<float>(size);
  for (int i = 0; i < rows; ++i) {
    float* xi = x + i * row;
    float* yi = y + i * row;
    Vec total{};
    for (int j = 0; j < width; j += lanes) total += load(xi + j);
    const Vec mean = splat(sum(total) * share);
    Vec squares{};
    for (int j = 0; j < width; j += lanes) {
      const Vec centred = (load(xi + j) - mean) * load(mask + j);
      store(xi + j, centred);
      squares += centred * centred;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) * share + norm_epsilon);
    inverse_deviation[i] = scale;
    for (int j = 0; j < width; j += lanes) {
      const Vec normal = load(xi + j) * scale;
      store(xi + j, normal);
      store(yi + j, normal * load(gain + j) + load(bias + j));
    }
  }
}

// dy in, dx in its place; dγ += Σ dy x̂, dβ += Σ dy.
static void layer_norm_backward(int rows, int size, const float* gain, const float* normal,
                                const float* inverse_deviation, float* dy, ptrdiff_t row, float* gain_slope,
                                float* bias_slope) {
  const int width = padded(size), whole = size / lanes * lanes;
  const float share = 1.0f / static_cast<float>(size);
  float keep[padding + lanes];  // of the features after the last whole vector: 1, or 0 in the padding
  for (int j = 0; j < width - whole; ++j) keep[j] = whole + j < size ? 1.0f : 0.0f;
  for (int i = 0; i < rows; ++i) {
    float* di = dy + i * row;
    const float* ni = normal + i * row;
    Vec plain_sum{}, weighted_sum{};
    for (int j = 0; j < width; j += lanes) {
      const Vec d = load(di + j), n = load(ni + j);
      store(gain_slope + j, load(gain_slope + j) + d * n);
      store(bias_slope + j, load(bias_slope + j) + d);
      const Vec scaled = d * load(gain + j);
      store(di + j, scaled);
      plain_sum += scaled;
      weighted_sum += scaled * n;
    }
    const Vec mean = splat(sum(plain_sum) * share), weighted = splat(sum(weighted_sum) * share);
    const float scale = inverse_deviation[i];
    const auto slope = [&](int j) { return (load(di + j) - mean - load(ni + j) * weighted) * scale; };
    for (int j = 0; j < whole; j += lanes) store(di + j, slope(j));
    // Padding: x̂ = 0 there, but the mean would leak into it.
    for (int j = whole; j < width; j += lanes) store(di + j, slope(j) * load(keep + j - whole));
  }
}

}  // namespace
}  // namespace thermosphere
