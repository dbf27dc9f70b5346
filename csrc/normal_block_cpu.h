// 128 normals of 32 consecutive counters, in vector registers; the numbers of philox.h and normal.h to the
// bit. Only for files that are compiled once per instruction set.
//
// Philox in 64-bit lanes: a multiplication of the low halves is one instruction, the next round ignores the
// upper halves, and nothing is shuffled between rounds. The compiler's own version of the scalar loop
// multiplies 64 × 64 bits and costs twice as much (AVX-512).
#pragma once

#include "normal.h"

#if defined(__x86_64__)
#include "intrinsics.h"
#endif

namespace thermosphere {
namespace {

constexpr int normal_counters = 32;

#if defined(__x86_64__)

#if defined(__AVX512F__)
#define THERMOSPHERE_MM(op) _mm512_##op
typedef __m512i Integers;
typedef __m512 Floats;
typedef __m512d Doubles;
THERMOSPHERE_INLINE Integers xor3(Integers a, Integers b, Integers c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
THERMOSPHERE_INLINE Floats read(const float* p) { return _mm512_loadu_ps(p); }
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
THERMOSPHERE_INLINE Floats read(const float* p) { return _mm256_loadu_ps(p); }
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
THERMOSPHERE_INLINE Floats read(const float* p) { return _mm_loadu_ps(p); }
THERMOSPHERE_INLINE void write(void* p, Integers v) { _mm_storeu_si128(static_cast<Integers*>(p), v); }
THERMOSPHERE_INLINE Integers low_halves(Integers a, Integers b) {
  return _mm_or_si128(_mm_and_si128(a, _mm_set1_epi64x(0xFFFFFFFF)), _mm_slli_epi64(b, 32));
}
#endif

THERMOSPHERE_INLINE Integers everywhere(uint64_t x) { return Integers{} + static_cast<int64_t>(x); }

constexpr int counters_a_vector = sizeof(Integers) / 4;  // 16, 8 or 4: two vectors of 64-bit lanes

// Counter, less the first of the vector, whose words go to place `at`: after the 4 × 4 transposition of every
// 128 bits its four normals then lie where they belong.
constexpr uint64_t counter_at(int at) {
  return static_cast<uint64_t>(at % 4 * (counters_a_vector / 4) + at / 4);
}
struct CounterTable {
  uint64_t even[counters_a_vector / 2], odd[counters_a_vector / 2];
  constexpr CounterTable() : even(), odd() {
    for (int j = 0; j < counters_a_vector / 2; ++j) {
      even[j] = counter_at(2 * j);
      odd[j] = counter_at(2 * j + 1);
    }
  }
};
alignas(64) constexpr CounterTable counter_table;

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

// out = the 4 × lanes matrix transposed within every 128 bits.
THERMOSPHERE_INLINE void transpose_quads(const float* const (&row)[4], float* out) {
  const Floats low0 = THERMOSPHERE_MM(unpacklo_ps)(read(row[0]), read(row[1]));
  const Floats high0 = THERMOSPHERE_MM(unpackhi_ps)(read(row[0]), read(row[1]));
  const Floats low1 = THERMOSPHERE_MM(unpacklo_ps)(read(row[2]), read(row[3]));
  const Floats high1 = THERMOSPHERE_MM(unpackhi_ps)(read(row[2]), read(row[3]));
  const auto store = [](float* at, Doubles v) { write(at, reinterpret_cast<Integers>(v)); };
  const auto pairs = [](Floats v) { return reinterpret_cast<Doubles>(v); };
  store(out, THERMOSPHERE_MM(unpacklo_pd)(pairs(low0), pairs(low1)));
  store(out + counters_a_vector, THERMOSPHERE_MM(unpackhi_pd)(pairs(low0), pairs(low1)));
  store(out + 2 * counters_a_vector, THERMOSPHERE_MM(unpacklo_pd)(pairs(high0), pairs(high1)));
  store(out + 3 * counters_a_vector, THERMOSPHERE_MM(unpackhi_pd)(pairs(high0), pairs(high1)));
}

struct WordBlock {
  alignas(64) uint32_t word[4][normal_counters];
};

THERMOSPHERE_INLINE void make_words(const Draw& draw, uint32_t quad, WordBlock& out) {
  Integers even, odd;
  __builtin_memcpy(&even, counter_table.even, sizeof even);
  __builtin_memcpy(&odd, counter_table.odd, sizeof odd);
  for (int first = 0; first < normal_counters; first += counters_abreast) {
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

THERMOSPHERE_INLINE void make_normals(const WordBlock& words, float* out) {
  alignas(64) float value[4][normal_counters];
  for (int i = 0; i < normal_counters; ++i) {
    const Pair low = normal_pair(words.word[0][i], words.word[1][i]);
    value[0][i] = low.first;
    value[1][i] = low.second;
  }
  for (int i = 0; i < normal_counters; ++i) {
    const Pair high = normal_pair(words.word[2][i], words.word[3][i]);
    value[2][i] = high.first;
    value[3][i] = high.second;
  }
  for (int first = 0; first < normal_counters; first += counters_a_vector)
    transpose_quads({value[0] + first, value[1] + first, value[2] + first, value[3] + first},
                    out + 4 * first);
}

#undef THERMOSPHERE_MM

#else

struct WordBlock {
  uint32_t word[4][normal_counters];
};

THERMOSPHERE_INLINE void make_words(const Draw& draw, uint32_t quad, WordBlock& out) {
  for (int i = 0; i < normal_counters; ++i) {
    const Words words = draw_words(draw, quad + static_cast<uint32_t>(i));
    for (int k = 0; k < 4; ++k) out.word[k][i] = words.word[k];
  }
}

THERMOSPHERE_INLINE void make_normals(const WordBlock& words, float* out) {
  for (int i = 0; i < normal_counters; ++i) {
    const Pair low = normal_pair(words.word[0][i], words.word[1][i]);
    const Pair high = normal_pair(words.word[2][i], words.word[3][i]);
    out[4 * i] = low.first;
    out[4 * i + 1] = low.second;
    out[4 * i + 2] = high.first;
    out[4 * i + 3] = high.second;
  }
}

#endif

// The normals of a draw, a block after another. The words of the next block are made before this one's are
// turned into normals: two long chains of instructions side by side instead of one after the other.
class NormalSource {
 public:
  inline __attribute__((always_inline)) NormalSource(const Draw& draw, uint32_t first_quad)
      : draw_(draw), quad_(first_quad) {
    make_words(draw_, quad_, words_);
  }
  inline __attribute__((always_inline)) void next(float* out) {
    const WordBlock own = words_;
    quad_ += normal_counters;
    make_words(draw_, quad_, words_);
    make_normals(own, out);
  }

 private:
  Draw draw_;
  uint32_t quad_;
  WordBlock words_;
};

}  // namespace
}  // namespace thermosphere
