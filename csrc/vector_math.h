// Vectors of floats, one width an instruction set, in the compiler's own vector types. Only for files that
// are compiled once per instruction set: everything here has internal linkage.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include "intrinsics.h"
#endif

#define THERMOSPHERE_METHOD inline __attribute__((always_inline))
#define THERMOSPHERE_ALWAYS static THERMOSPHERE_METHOD

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
typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef int32_t IntVec __attribute__((vector_size(4 * lanes)));
typedef Vec UnalignedVec __attribute__((aligned(4), may_alias));

THERMOSPHERE_ALWAYS Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
THERMOSPHERE_ALWAYS void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
THERMOSPHERE_ALWAYS Vec splat(float x) { return x - Vec{}; }
THERMOSPHERE_ALWAYS Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// max(x, 0); NaN stays NaN: the larger of the two is the second where they do not compare.
THERMOSPHERE_ALWAYS Vec relu(Vec x) { return larger(Vec{}, x); }

// A vector's halves joined until one element is left, `join` taking (lower half, upper half) of each width.
// In registers: through memory each load waits for the store before it, which costs a forward pass of d = 14
// a tenth. In narrower registers as the halves get narrower: those cost half as much.
#if defined(__AVX2__)
template <class Join>
THERMOSPHERE_ALWAYS float fold(Vec v, const Join& join) {
#if defined(__AVX512F__)
  const __m512d whole = reinterpret_cast<__m512d>(v);
  const __m256d pair = _mm512_extractf64x4_pd(whole, 1);
  const Vec8 eight =
      join(reinterpret_cast<Vec8>(_mm512_castpd512_pd256(whole)), reinterpret_cast<Vec8>(pair));
#else
  const Vec8 eight = v;
#endif
  const __m256 half = reinterpret_cast<__m256>(eight);
  const Vec4 four = join(reinterpret_cast<Vec4>(_mm256_castps256_ps128(half)),
                         reinterpret_cast<Vec4>(_mm256_extractf128_ps(half, 1)));
#else
template <class Join>
THERMOSPHERE_ALWAYS float fold(Vec four, const Join& join) {
#endif
  const Vec4 two = join(four, Vec4{four[2], four[3], four[2], four[3]});
  return join(two, Vec4{two[1], two[1], two[1], two[1]})[0];
}

THERMOSPHERE_ALWAYS float sum(Vec v) {
  return fold(v, [](auto lower, auto upper) __attribute__((always_inline)) { return lower + upper; });
}
THERMOSPHERE_ALWAYS float largest(Vec v) {
  return fold(
      v, [](auto lower, auto upper) __attribute__((always_inline)) { return lower > upper ? lower : upper; });
}

constexpr float log2_of_e = 1.44269504f;

// 2^x for x <= 0 (a softmax after its maximum), relative error 2e-7; 0 below -126, NaN for NaN. x = i + f,
// |f| <= 1/2: 2^f by its minimax polynomial of degree 5 (9e-8), 2^i through the exponent.
THERMOSPHERE_ALWAYS Vec exp2_nonpositive(Vec x) {
#if defined(__AVX512F__)
  const Vec whole = reinterpret_cast<Vec>(_mm512_roundscale_ps(reinterpret_cast<__m512>(x), 0));
#else
  const Vec rounder = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
  const Vec whole = (x + rounder) - rounder;
#endif
  const Vec f = x - whole;
  Vec p = splat(0.001326472731307149f);
  p = p * f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 kept =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return reinterpret_cast<Vec>(
      _mm512_maskz_scalef_ps(kept, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
  const IntVec power = (__builtin_convertvector(whole, IntVec) + 127) << 23;
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  const Vec value = p * scale;
  return x < -126.0f ? Vec{} : value;
#endif
}

}  // namespace
}  // namespace thermosphere
