// Standard normals by the Box-Muller transform with our own logarithm and sine: libm's differ between
// machines in the last bit, these do not. Absolute error against float64 below 1e-6 (tested).
//
// Written once for numbers and for vectors of them (normal_block_cpu.h): Real is float, Word uint32_t, or a
// type with their operators and the functions below.
#pragma once

#include "philox.h"

namespace thermosphere {

THERMOSPHERE_INLINE int32_t to_int(uint32_t word) { return static_cast<int32_t>(word); }
THERMOSPHERE_INLINE float to_real(int32_t x) { return static_cast<float>(x); }
THERMOSPHERE_INLINE float root(float x) { return __builtin_sqrtf(x); }
THERMOSPHERE_INLINE float choose(bool which, float yes, float no) { return which ? yes : no; }
// x, its sign changed where the word's highest bit is set.
THERMOSPHERE_INLINE float turn_sign(float x, uint32_t word) {
  return bits_to_float(float_to_bits(x) ^ static_cast<int32_t>(word & 0x80000000u));
}

// ln(u) for u in (0, 1]. Minimax fit of (ln(1+f) - f + f²/2) / f³ on [√½ - 1, √2 - 1], degree 6: 3e-8.
template <class Real>
THERMOSPHERE_INLINE Real log_unit(const Real& u) {
  const auto bits = float_to_bits(u);
  const auto exponent = (bits - 0x3F3504F3) >> 23;  // 0x3F3504F3 is √½: the mantissa falls in [√½, √2)
  const Real f = bits_to_float(bits - exponent * 0x00800000) - 1.0f;
  Real p = 0.0870036780834198f * f - 0.14267489314079285f;
  p = p * f + 0.1491478979587555f;
  p = p * f - 0.1657758504152298f;
  p = p * f + 0.19963061809539795f;
  p = p * f - 0.2500133812427521f;
  p = p * f + 0.3333390951156616f;
  const Real e = to_real(exponent);
  const Real square = f * f;
  // ln 2 in two parts, the first with so few bits that e times it is exact.
  return e * 0.693359375f + (f + (square * (f * p - 0.5f) - e * 2.12194440e-4f));
}

template <class Real>
struct PairOf {
  Real first, second;
};
using Pair = PairOf<float>;

// Two independent normals from two words: 31 bits of radius (tails to 6.7 σ), 32 bits of angle.
template <class Word>
THERMOSPHERE_INLINE auto normal_pair(const Word& radius_word, const Word& angle_word) {
  using Real = decltype(to_real(to_int(radius_word)));
  const Real u = (to_real(to_int(radius_word >> 1)) + 0.5f) * 0x1p-31f;
  const Real radius = root(-2.0f * log_unit(u));
  // Angle = π/2 (quadrant + t), t uniform on [-½, ½): the circle in four exact turns of one arc.
  const Real t = (to_real(to_int(angle_word & 0x3FFFFFFFu)) + 0.5f) * 0x1p-30f - 0.5f;
  const Real z = t * t;
  // Minimax fits of sin(π t/2)/t and cos(π t/2) in t², 5e-9 and 3e-8.
  const Real sine = t * (1.5707963705062866f +
                         z * (-0.6459634900093079f + z * (0.07968022674322128f - z * 0.004602177068591118f)));
  const Real cosine =
      1.0f + z * (-1.2336970567703247f + z * (0.2535986304283142f - z * 0.020408352836966515f));
  // Quadrants 0..3, the word's upper two bits, are (c, s), (-s, c), (-c, -s), (s, -c).
  const auto swap = (angle_word & 0x40000000u) != 0u;
  const Real x = choose(swap, sine, cosine);
  const Real y = choose(swap, cosine, sine);
  return PairOf<Real>{radius * turn_sign(x, angle_word ^ (angle_word << 1)),
                      radius * turn_sign(y, angle_word)};
}

}  // namespace thermosphere
