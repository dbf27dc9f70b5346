// Vectors of floats, one width an instruction set, in the compiler's own vector types. Only for files that
// are compiled once per instruction set: everything here has internal linkage.
#pragma once

#include <stdint.h>

#define THERMOSPHERE_ALWAYS static inline __attribute__((always_inline))

namespace thermosphere {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * lanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * lanes)));
typedef Vec UnalignedVec __attribute__((aligned(4), may_alias));

THERMOSPHERE_ALWAYS Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
THERMOSPHERE_ALWAYS void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
THERMOSPHERE_ALWAYS Vec splat(float x) { return x - Vec{}; }
THERMOSPHERE_ALWAYS Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// max(x, 0); NaN stays NaN: the larger of the two is the second where they do not compare.
THERMOSPHERE_ALWAYS Vec relu(Vec x) { return larger(Vec{}, x); }

THERMOSPHERE_ALWAYS float sum(Vec v) {
  float part[lanes];
  store(part, v);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

THERMOSPHERE_ALWAYS float largest(Vec v) {
  float part[lanes];
  store(part, v);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] = part[i] > part[i + width] ? part[i] : part[i + width];
  return part[0];
}

// e^x for x <= 0 (a softmax after its maximum), relative error 2e-7; 0 below -87. x = (i + f) ln 2, e^(f ln
// 2) by its Taylor polynomial of degree 6 on |f| <= 1/2, 2^i through the exponent bits.
THERMOSPHERE_ALWAYS Vec exp_nonpositive(Vec x) {
  const Vec rounder = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + rounder;
  const Vec whole = shifted - rounder;
  const Vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vec p = splat(1.0f / 720.0f);
  p = p * r + (1.0f / 120.0f);
  p = p * r + (1.0f / 24.0f);
  p = p * r + (1.0f / 6.0f);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec bits = __builtin_convertvector(whole, IntVec);
  const IntVec power = (bits + 127) << 23;
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  const Vec value = p * scale;
  return x < -87.0f ? Vec{} : value;
}

}  // namespace
}  // namespace thermosphere
