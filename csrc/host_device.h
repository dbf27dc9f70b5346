// One arithmetic for every target: what is marked here compiles as host code (once per instruction set)
// and as device code, from the same lines, with only integers and IEEE + - * / sqrt.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define THERMOSPHERE_INLINE static __host__ __device__ __forceinline__
#else
// Internal linkage and always inlined: a copy compiled for AVX-512 must never be the one the linker keeps.
#define THERMOSPHERE_INLINE static inline __attribute__((always_inline))
#endif

namespace thermosphere {

THERMOSPHERE_INLINE float bits_to_float(int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

THERMOSPHERE_INLINE int32_t float_to_bits(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace thermosphere
