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

typedef float RealVec __attribute__((vector_size(sizeof(Integers))));
typedef int32_t IntegerVec __attribute__((vector_size(sizeof(Integers))));
typedef uint32_t WordVec __attribute__((vector_size(sizeof(Integers))));

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
THERMOSPHERE_INLINE void transpose_quads(const RealVec (&row)[4], float* out) {
  const auto whole = [](const RealVec& v) { return reinterpret_cast<Floats>(v); };
  const Floats low0 = THERMOSPHERE_MM(unpacklo_ps)(whole(row[0]), whole(row[1]));
  const Floats high0 = THERMOSPHERE_MM(unpackhi_ps)(whole(row[0]), whole(row[1]));
  const Floats low1 = THERMOSPHERE_MM(unpacklo_ps)(whole(row[2]), whole(row[3]));
  const Floats high1 = THERMOSPHERE_MM(unpackhi_ps)(whole(row[2]), whole(row[3]));
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

// Vectors that go through the Box-Muller transform side by side, operation by operation. A pair's logarithm
// is some thirty operations that wait for one another, more than the processor sees past to find the next
// pair's: four abreast the noise takes a tenth less (AVX-512), two a sixth less where there are 16 registers.
constexpr int pairs_abreast = sizeof(Integers) == 64 ? 4 : 2;

template <class V>
struct Abreast {
  V v[pairs_abreast];
};
using Reals = Abreast<RealVec>;
using SignedWords = Abreast<IntegerVec>;
using UnsignedWords = Abreast<WordVec>;

// out.v[i] = function(i).
template <class V, class Function>
THERMOSPHERE_INLINE Abreast<V> abreast(const Function& function) {
  Abreast<V> out;
#pragma GCC unroll 4
  for (int i = 0; i < pairs_abreast; ++i) out.v[i] = function(i);
  return out;
}

#define THERMOSPHERE_EACH(type, expression) \
  abreast<type>([&](int i) __attribute__((always_inline)) -> type { return expression; })
#define THERMOSPHERE_ABREAST(op)                                                         \
  template <class V>                                                                     \
  THERMOSPHERE_INLINE Abreast<V> operator op(const Abreast<V>& a, const Abreast<V>& b) { \
    return THERMOSPHERE_EACH(V, a.v[i] op b.v[i]);                                       \
  }                                                                                      \
  template <class V, class Number>                                                       \
  THERMOSPHERE_INLINE Abreast<V> operator op(const Abreast<V>& a, Number b) {            \
    return THERMOSPHERE_EACH(V, a.v[i] op b);                                            \
  }                                                                                      \
  template <class V, class Number>                                                       \
  THERMOSPHERE_INLINE Abreast<V> operator op(Number a, const Abreast<V>& b) {            \
    return THERMOSPHERE_EACH(V, a op b.v[i]);                                            \
  }
THERMOSPHERE_ABREAST(+)
THERMOSPHERE_ABREAST(-)
THERMOSPHERE_ABREAST(*)
THERMOSPHERE_ABREAST(&)
THERMOSPHERE_ABREAST(^)
THERMOSPHERE_ABREAST(>>)
THERMOSPHERE_ABREAST(<<)
#undef THERMOSPHERE_ABREAST

THERMOSPHERE_INLINE SignedWords operator!=(const UnsignedWords& a, uint32_t b) {
  return THERMOSPHERE_EACH(IntegerVec, a.v[i] != b);
}
THERMOSPHERE_INLINE SignedWords to_int(const UnsignedWords& a) {
  return THERMOSPHERE_EACH(IntegerVec, reinterpret_cast<IntegerVec>(a.v[i]));
}
THERMOSPHERE_INLINE SignedWords float_to_bits(const Reals& a) {
  return THERMOSPHERE_EACH(IntegerVec, reinterpret_cast<IntegerVec>(a.v[i]));
}
THERMOSPHERE_INLINE Reals bits_to_float(const SignedWords& a) {
  return THERMOSPHERE_EACH(RealVec, reinterpret_cast<RealVec>(a.v[i]));
}
THERMOSPHERE_INLINE Reals to_real(const SignedWords& a) {
  return THERMOSPHERE_EACH(RealVec, __builtin_convertvector(a.v[i], RealVec));
}
THERMOSPHERE_INLINE Reals root(const Reals& a) {
  return THERMOSPHERE_EACH(
      RealVec, reinterpret_cast<RealVec>(THERMOSPHERE_MM(sqrt_ps)(reinterpret_cast<Floats>(a.v[i]))));
}
THERMOSPHERE_INLINE Reals choose(const SignedWords& which, const Reals& yes, const Reals& no) {
  return THERMOSPHERE_EACH(RealVec, which.v[i] ? yes.v[i] : no.v[i]);
}
THERMOSPHERE_INLINE Reals turn_sign(const Reals& a, const UnsignedWords& word) {
  return THERMOSPHERE_EACH(
      RealVec, reinterpret_cast<RealVec>(reinterpret_cast<WordVec>(a.v[i]) ^ (word.v[i] & 0x80000000u)));
}

THERMOSPHERE_INLINE WordVec read(const uint32_t* words) {
  WordVec v;
  __builtin_memcpy(&v, words, sizeof v);
  return v;
}

// Word `word` of the first pairs of a vector of counters, then of their second pairs, then of the next
// vector.
THERMOSPHERE_INLINE UnsignedWords words_abreast(const WordBlock& words, int word, int first) {
  return THERMOSPHERE_EACH(WordVec, read(words.word[word + 2 * (i % 2)] + first + i / 2 * counters_a_vector));
}

THERMOSPHERE_INLINE void make_normals(const WordBlock& words, float* out) {
  for (int first = 0; first < normal_counters; first += pairs_abreast / 2 * counters_a_vector) {
    const PairOf<Reals> pair = normal_pair(words_abreast(words, 0, first), words_abreast(words, 1, first));
#pragma GCC unroll 2
    for (int i = 0; i < pairs_abreast; i += 2)
      transpose_quads({pair.first.v[i], pair.second.v[i], pair.first.v[i + 1], pair.second.v[i + 1]},
                      out + 4 * first + 2 * i * counters_a_vector);
  }
}

#undef THERMOSPHERE_EACH
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

// The normals of a draw, a block after another.
class NormalSource {
 public:
  inline __attribute__((always_inline)) NormalSource(const Draw& draw, uint32_t first_quad)
      : draw_(draw), quad_(first_quad) {}
  inline __attribute__((always_inline)) void next(float* out) {
    WordBlock words;
    make_words(draw_, quad_, words);
    make_normals(words, out);
    quad_ += normal_counters;
  }

 private:
  Draw draw_;
  uint32_t quad_;
};

}  // namespace
}  // namespace thermosphere
