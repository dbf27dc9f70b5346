// The words of 32 consecutive counters, in vector registers; those of philox.h to the bit. Only for files
// that are compiled once per instruction set.
//
// Philox in 64-bit lanes: a multiplication of the low halves is one instruction, the next round ignores the
// upper halves, and nothing is shuffled between rounds. The compiler's own version of the scalar loop
// multiplies 64 × 64 bits and costs twice as much (AVX-512).
#pragma once

#include "philox.h"

#if defined(__x86_64__)
#include "intrinsics.h"
#endif

namespace thermosphere {
namespace {

constexpr int block_counters = 32;

#if defined(__x86_64__)

#if defined(__AVX512F__)
#define THERMOSPHERE_MM(op) _mm512_##op
typedef __m512i Integers;
typedef __m512 Floats;
typedef __m512d Doubles;
THERMOSPHERE_INLINE Integers xor3(Integers a, Integers b, Integers c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
THERMOSPHERE_INLINE void write(void* p, Integers v) { _mm512_storeu_si512(p, v); }
THERMOSPHERE_INLINE Integers low_halves(Integers a, Integers b) {  // a in even places, b in odd ones
  return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA);
}
#elif defined(__AVX2__)
#define THERMOSPHERE_MM(op) _mm256_##op
typedef __m256i Integers;
typedef __m256 Floats;
typedef __m256d Doubles;
THERMOSPHERE_INLINE Integers xor3(Integers a, Integers b, Integers c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
THERMOSPHERE_INLINE void write(void* p, Integers v) { _mm256_storeu_si256(static_cast<Integers*>(p), v); }
THERMOSPHERE_INLINE Integers low_halves(Integers a, Integers b) {
  return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
}
#else
#define THERMOSPHERE_MM(op) _mm_##op
typedef __m128i Integers;
typedef __m128 Floats;
typedef __m128d Doubles;
THERMOSPHERE_INLINE Integers xor3(Integers a, Integers b, Integers c) {
  return _mm_xor_si128(_mm_xor_si128(a, b), c);
}
THERMOSPHERE_INLINE void write(void* p, Integers v) { _mm_storeu_si128(static_cast<Integers*>(p), v); }
THERMOSPHERE_INLINE Integers low_halves(Integers a, Integers b) {
  return _mm_or_si128(_mm_and_si128(a, _mm_set1_epi64x(0xFFFFFFFF)), _mm_slli_epi64(b, 32));
}
#endif

THERMOSPHERE_INLINE Integers everywhere(uint64_t x) { return Integers{} + static_cast<int64_t>(x); }

constexpr int counters_a_vector = sizeof(Integers) / 4;  // 16, 8 or 4: two vectors of 64-bit lanes

// The counters, less the first of a vector, whose words go to its places. A vector's words come from two of
// 64-bit lanes: those in even places from one, those in odd places from the other.
struct CounterOrder {
  uint64_t even[counters_a_vector / 2], odd[counters_a_vector / 2];
  template <class Counter>
  constexpr explicit CounterOrder(const Counter& counter_at) : even(), odd() {
    for (int j = 0; j < counters_a_vector / 2; ++j) {
      even[j] = counter_at(2 * j);
      odd[j] = counter_at(2 * j + 1);
    }
  }
};
alignas(64) constexpr CounterOrder counters_in_order{[](int at) { return static_cast<uint64_t>(at); }};
// After the 4 × 4 transposition of every 128 bits the four normals of a counter then lie where they belong.
alignas(64) constexpr CounterOrder counters_for_quads{
    [](int at) { return static_cast<uint64_t>(at % 4 * (counters_a_vector / 4) + at / 4); }};

// Vectors of counters that go through the rounds side by side: one alone waits for its multiplications. As
// many as their words fit the registers.
constexpr int chains_abreast = sizeof(Integers) == 64 ? 4 : 2;
constexpr int counters_abreast = chains_abreast / 2 * counters_a_vector;

struct WideWords {
  Integers word[4];  // the low halves
};

// From counters in word[0].
THERMOSPHERE_INLINE void wide_philox(const Draw& draw, WideWords (&c)[chains_abreast]) {
  const Integers factor0 = everywhere(0xD2511F53);
  const Integers factor1 = everywhere(0xCD9E8D57);
  for (WideWords& w : c) {
    w.word[1] = everywhere(draw.chain);
    w.word[2] = everywhere(draw.step0);
    w.word[3] = everywhere(draw.step1);
  }
  uint32_t key0 = draw.key0, key1 = draw.key1;
  for (int round = 0; round < 10; ++round) {
    for (WideWords& w : c) {
      const Integers product0 = THERMOSPHERE_MM(mul_epu32)(w.word[0], factor0);
      const Integers product1 = THERMOSPHERE_MM(mul_epu32)(w.word[2], factor1);
      w.word[0] = xor3(THERMOSPHERE_MM(srli_epi64)(product1, 32), w.word[1], everywhere(key0));
      w.word[2] = xor3(THERMOSPHERE_MM(srli_epi64)(product0, 32), w.word[3], everywhere(key1));
      w.word[1] = product1;
      w.word[3] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

struct WordBlock {
  alignas(64) uint32_t word[4][block_counters];
};

THERMOSPHERE_INLINE void make_words(const Draw& draw, uint32_t quad, const CounterOrder& order,
                                    WordBlock& out) {
  Integers even, odd;
  __builtin_memcpy(&even, order.even, sizeof even);
  __builtin_memcpy(&odd, order.odd, sizeof odd);
  for (int first = 0; first < block_counters; first += counters_abreast) {
    WideWords c[chains_abreast];
    for (int i = 0; i < chains_abreast; ++i) {
      const int at = first + i / 2 * counters_a_vector;
      const Integers start = everywhere(static_cast<uint64_t>(quad) + static_cast<uint64_t>(at));
      c[i].word[0] = THERMOSPHERE_MM(add_epi64)(start, i % 2 == 0 ? even : odd);
    }
    wide_philox(draw, c);
    for (int i = 0; i < chains_abreast; i += 2)
      for (int k = 0; k < 4; ++k)
        write(out.word[k] + first + i / 2 * counters_a_vector, low_halves(c[i].word[k], c[i + 1].word[k]));
  }
}

#else

struct WordBlock {
  uint32_t word[4][block_counters];
};

struct CounterOrder {};
constexpr CounterOrder counters_in_order, counters_for_quads;

THERMOSPHERE_INLINE void make_words(const Draw& draw, uint32_t quad, const CounterOrder&, WordBlock& out) {
  for (int i = 0; i < block_counters; ++i) {
    const Words words = draw_words(draw, quad + static_cast<uint32_t>(i));
    for (int k = 0; k < 4; ++k) out.word[k][i] = words.word[k];
  }
}

#endif

}  // namespace
}  // namespace thermosphere
