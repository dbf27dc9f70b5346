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

// The upper half of the first `width` lanes, moved to the lower. In registers: through memory each load waits
// for the store before it, which costs a forward pass of d = 14 a tenth.
template <int width>
THERMOSPHERE_ALWAYS Vec upper(Vec v) {
#if defined(__clang__)
  Vec half{};
  for (int i = 0; i < width / 2; ++i) half[i] = v[i + width / 2];
  return half;
#else
  IntVec from{};
  for (int i = 0; i < width / 2; ++i) from[i] = i + width / 2;
  return __builtin_shuffle(v, from);
#endif
}

THERMOSPHERE_ALWAYS float sum(Vec v) {
#if defined(__AVX512F__)
  v += upper<16>(v);
#endif
#if defined(__AVX2__)
  v += upper<8>(v);
#endif
  v += upper<4>(v);
  v += upper<2>(v);
  return v[0];
}

THERMOSPHERE_ALWAYS float largest(Vec v) {
#if defined(__AVX512F__)
  v = larger(v, upper<16>(v));
#endif
#if defined(__AVX2__)
  v = larger(v, upper<8>(v));
#endif
  v = larger(v, upper<4>(v));
  v = larger(v, upper<2>(v));
  return v[0];
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
