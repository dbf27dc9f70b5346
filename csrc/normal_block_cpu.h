// 128 normals of 32 consecutive counters, in vector registers; the numbers of philox.h and normal.h to the
// bit. Only for files that are compiled once per instruction set.
#pragma once

#include "normal.h"
#include "philox_block_cpu.h"

namespace thermosphere {
namespace {

#if defined(__x86_64__)

typedef float RealVec __attribute__((vector_size(sizeof(Integers))));
typedef int32_t IntegerVec __attribute__((vector_size(sizeof(Integers))));
typedef uint32_t WordVec __attribute__((vector_size(sizeof(Integers))));

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
  for (int first = 0; first < block_counters; first += pairs_abreast / 2 * counters_a_vector) {
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

THERMOSPHERE_INLINE void make_normals(const WordBlock& words, float* out) {
  for (int i = 0; i < block_counters; ++i) {
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
    make_words(draw_, quad_, counters_for_quads, words);
    make_normals(words, out);
    quad_ += block_counters;
  }

 private:
  Draw draw_;
  uint32_t quad_;
};

}  // namespace
}  // namespace thermosphere
