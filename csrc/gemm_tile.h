// The product A (M×K) · B (K×N) in float32, for the small odd shapes of short sequences. What becomes of a
// sum while it is still in a register is the caller's to say (tile_finish.h).
//
// One tile keeps up to `tile_rows` rows × 2 vectors of C in registers while it runs down K: per k two loads
// of B and one broadcast of A a row. AVX-512 has 32 registers: 14 × 2 accumulators + 2 of B + a broadcast
// from memory; AVX2 and SSE have 16: 6 × 2 + 2 + 1. 14 × 2 independent chains cover the 4 cycles of an FMA at
// two a cycle three times over. Rows are divided evenly among the tiles (86 = 2 × 13 + 5 × 12, not 6 × 14 +
// 2): a short last tile would run at the latency of its few chains.
//
// A is addressed by two strides, so A and Aᵀ cost the same. N must be a multiple of 16, which every buffer is
// padded to.
#pragma once

#include <stddef.h>

#include "tile_finish.h"

namespace thermosphere {
namespace {

constexpr int panel = 2 * lanes;
constexpr int tile_rows = lanes == 16 ? 14 : 6;

// Row i, column k at data[i * row + k * column].
struct Left {
  const float* data;
  ptrdiff_t row, column;
};

// Row k at data[k * row]; columns contiguous. A panel of 32 columns starts `next` floats after the one
// before: 32 in a plain matrix, 32 K where the panels were packed one after another (power-of-two rows would
// share few cache sets).
struct Right {
  const float* data;
  ptrdiff_t row;
  ptrdiff_t next32;
};

// The rows of A that a tile reads at one k. Seven are within reach of an address made of a base and one,
// three or five times their distance, times 1, 2 or 4; a taller tile has two bases. Left to itself g++ holds
// a distance a row, more than there are registers, and reads them back from the stack at every k.
template <int rows>
struct TileRows {
  const char *upper, *lower;  // rows 0 and 7, at this k
  ptrdiff_t step;             // to the next k
  ptrdiff_t one, three, five;

  THERMOSPHERE_METHOD TileRows(const float* a, ptrdiff_t row, ptrdiff_t column)
      : upper(reinterpret_cast<const char*>(a)),
        lower(reinterpret_cast<const char*>(a + 7 * row)),
        step(4 * column),
        one(4 * row),
        three(12 * row),
        five(20 * row) {}
  THERMOSPHERE_METHOD float operator[](int i) const {
    if constexpr (rows <= 7) return *reinterpret_cast<const float*>(upper + i * one);
    const char* base = i < 7 ? upper : lower;
    const ptrdiff_t offsets[] = {0, one, 2 * one, three, 4 * one, five, 2 * three};
    return *reinterpret_cast<const float*>(base + offsets[i % 7]);
  }
  THERMOSPHERE_METHOD void begin() {  // the distances might have changed: no multiple of them outlives a k
    if constexpr (rows > 7) __asm__("" : "+r"(one), "+r"(three), "+r"(five));
  }
  THERMOSPHERE_METHOD void next() {
    upper += step;
    lower += step;
  }
};

// Every loop but that over K is unrolled by name: only then does g++ keep the sums in registers from the
// first zero to the last use. Through memory a tile cost 145 cycles more, a third of one at K = 14.
template <int rows, int vectors, class Finish>
static __attribute__((noinline)) void tile(int depth, const float* a, ptrdiff_t row, ptrdiff_t column,
                                           const float* b, ptrdiff_t b_row, const Finish& finish,
                                           int first_row, int first_column) {
  if constexpr (requires { &Finish::fetch; }) finish.fetch(first_row, rows, first_column, vectors * lanes);
  Vec sums[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sums[i][j] = Vec{};
  TileRows<rows> left(a, row, column);
#pragma GCC unroll 1
  for (int k = 0; k < depth; ++k) {
    left.begin();
    Vec right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) right[j] = load(b + j * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sums[i][j] += right[j] * left[i];
    left.next();
    b += b_row;
  }
#pragma GCC unroll 2
  for (int j = 0; j < vectors; ++j) {
    auto take = finish.rows_from(first_row, first_column + j * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) take(sums[i][j]);
    take.end();
  }
}

template <class Finish>
using Tile = void (*)(int, const float*, ptrdiff_t, ptrdiff_t, const float*, ptrdiff_t, const Finish&, int,
                      int);

template <int vectors, class Finish>
constexpr Tile<Finish> tiles[15] = {nullptr,
                                    tile<1, vectors, Finish>,
                                    tile<2, vectors, Finish>,
                                    tile<3, vectors, Finish>,
                                    tile<4, vectors, Finish>,
                                    tile<5, vectors, Finish>,
                                    tile<6, vectors, Finish>,
#if defined(__AVX512F__)
                                    tile<7, vectors, Finish>,
                                    tile<8, vectors, Finish>,
                                    tile<9, vectors, Finish>,
                                    tile<10, vectors, Finish>,
                                    tile<11, vectors, Finish>,
                                    tile<12, vectors, Finish>,
                                    tile<13, vectors, Finish>,
                                    tile<14, vectors, Finish>
#endif
};

// Columns [first, first + n) of the product; first is a multiple of 32.
template <class Finish>
static void multiply_columns(int m, int first, int n, int k, Left a, Right b, const Finish& finish) {
  if (m <= 0) return;
  const int tall = (m + tile_rows - 1) / tile_rows;
  for (int column = first; column < first + n;) {
    const bool wide = column + panel <= first + n;
    const float* right = b.data + (column / 32) * b.next32 + column % 32;
    for (int t = 0; t < tall; ++t) {
      const int top = m * t / tall, end = m * (t + 1) / tall;
      const Tile<Finish> run = wide ? tiles<2, Finish>[end - top] : tiles<1, Finish>[end - top];
      run(k, a.data + top * a.row, a.row, a.column, right, b.row, finish, top, column);
    }
    column += wide ? panel : lanes;
  }
}

template <class Finish>
THERMOSPHERE_ALWAYS void multiply(int m, int n, int k, Left a, Right b, const Finish& finish) {
  multiply_columns(m, 0, n, k, a, b, finish);
}

// C = A B and C += A B.
THERMOSPHERE_ALWAYS void multiply(int m, int n, int k, Left a, Right b, float* c, ptrdiff_t c_row) {
  multiply(m, n, k, a, b, Overwrite{c, c_row});
}
THERMOSPHERE_ALWAYS void multiply_add(int m, int n, int k, Left a, Right b, float* c, ptrdiff_t c_row) {
  multiply(m, n, k, a, b, Add{c, c_row});
}

THERMOSPHERE_ALWAYS Left rows_of(const float* data, ptrdiff_t row) { return Left{data, row, 1}; }
THERMOSPHERE_ALWAYS Left transposed(const float* data, ptrdiff_t row) { return Left{data, 1, row}; }
THERMOSPHERE_ALWAYS Right plain(const float* data, ptrdiff_t row) { return Right{data, row, 32}; }

// out += column sums of a (rows × width).
[[maybe_unused]] static void add_columns(int rows, int width, const float* a, ptrdiff_t row, float* out) {
  for (int j = 0; j < width; j += lanes) {
    Vec total{};
    for (int i = 0; i < rows; ++i) total += load(a + i * row + j);
    store(out + j, load(out + j) + total);
  }
}

}  // namespace
}  // namespace thermosphere
