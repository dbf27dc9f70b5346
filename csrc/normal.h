// Standard normals by the Box-Muller transform with our own logarithm and sine: libm's differ between
// machines in the last bit, these do not. Absolute error against float64 below 1e-6 (tested).
#pragma once

#include "philox.h"

namespace thermosphere {

// ln(u) for u in (0, 1]. Minimax fit of (ln(1+f) - f + f²/2) / f³ on [√½ - 1, √2 - 1], degree 6: 3e-8.
THERMOSPHERE_INLINE float log_unit(float u) {
  const int32_t bits = float_to_bits(u);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;  // 0x3F3504F3 is √½: the mantissa falls in [√½, √2)
  const float f = bits_to_float(bits - exponent * 0x00800000) - 1.0f;
  float p = 0.0870036780834198f;
  p = p * f - 0.14267489314079285f;
  p = p * f + 0.1491478979587555f;
  p = p * f - 0.1657758504152298f;
  p = p * f + 0.19963061809539795f;
  p = p * f - 0.2500133812427521f;
  p = p * f + 0.3333390951156616f;
  const float e = static_cast<float>(exponent);
  const float square = f * f;
  // ln 2 in two parts, the first with so few bits that e times it is exact.
  return e * 0.693359375f + (f + (square * (f * p - 0.5f) - e * 2.12194440e-4f));
}

struct Pair {
  float first, second;
};

// Two independent normals from two words: 31 bits of radius (tails to 6.7 σ), 32 bits of angle.
THERMOSPHERE_INLINE Pair normal_pair(uint32_t radius_word, uint32_t angle_word) {
  const float u = (static_cast<float>(static_cast<int32_t>(radius_word >> 1)) + 0.5f) * 0x1p-31f;
  const float radius = __builtin_sqrtf(-2.0f * log_unit(u));
  // Angle = π/2 (quadrant + t), t uniform on [-½, ½): the circle in four exact turns of one arc.
  const float t =
      (static_cast<float>(static_cast<int32_t>(angle_word & 0x3FFFFFFFu)) + 0.5f) * 0x1p-30f - 0.5f;
  const float z = t * t;
  // Minimax fits of sin(π t/2)/t and cos(π t/2) in t², 5e-9 and 3e-8.
  const float sine = t * (1.5707963705062866f + z * (-0.6459634900093079f +
                                                     z * (0.07968022674322128f - z * 0.004602177068591118f)));
  const float cosine =
      1.0f + z * (-1.2336970567703247f + z * (0.2535986304283142f - z * 0.020408352836966515f));
  // Quadrants 0..3, the word's upper two bits, are (c, s), (-s, c), (-c, -s), (s, -c).
  const bool swap = (angle_word & 0x40000000u) != 0u;
  const float x = swap ? sine : cosine;
  const float y = swap ? cosine : sine;
  const float first =
      bits_to_float(float_to_bits(x) ^ static_cast<int32_t>((angle_word ^ (angle_word << 1)) & 0x80000000u));
  const float second = bits_to_float(float_to_bits(y) ^ static_cast<int32_t>(angle_word & 0x80000000u));
  return Pair{radius * first, radius * second};
}

}  // namespace thermosphere
