// The row stage of a block, shared by every depth: from A X to the block's output at some rows, forward and
// backward.
#pragma once

#include "encoder_layout.h"
#include "layer_norm_cpu.h"
#include "masked_cross_entropy_cpu.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace thermosphere {
namespace {

// Sequences whose masked rows go through the last block together: about 64 rows fill the tiles' height, and
// more would push the activations out of the second-level cache.
constexpr int pack_rows = 64;
constexpr int pack_sequences = 8;

// Rows of hidden activations get a line more than a power of two, or their columns share few cache sets.
THERMOSPHERE_ALWAYS int hidden_row(int m) { return padded(m) % 64 == 0 ? padded(m) + 16 : padded(m); }

// What backward needs of a block for R rows; every array (R × padded).
struct BlockState {
  float* x;                // input of the rows: queries' residual
  float *queries, *mixed;  // X Wqkᵀ, A X
  float *normal1, *deviation1, *y;
  float *active, *hidden;  // relu, relu + PE
  float *normal2, *deviation2, *out;
  float* attention;  // Aᵀ of each sequence, n × padded(r) after one another
};

// Panels of 32 columns of Wᵀ (columns × rows), zero where there is none.
void pack_transposed(const EncoderTensor& t, const float* w, float* out) {
  for (int p = 0; p < t.rows; p += 32)
    for (int k = 0; k < t.columns; ++k)
      for (int j = 0; j < 32; ++j)
        *out++ = p + j < t.rows ? w[static_cast<ptrdiff_t>(p + j) * t.columns + k] : 0.0f;
}

// Panels of 32 columns of W (rows × columns).
void pack_plain(const EncoderTensor& t, const float* w, float* out) {
  for (int p = 0; p < t.columns; p += 32)
    for (int k = 0; k < t.rows; ++k) {
      const int own = t.columns - p < 32 ? t.columns - p : 32;
      const float* row = w + static_cast<ptrdiff_t>(k) * t.columns + p;
      for (int j = 0; j < own; ++j) out[j] = row[j];
      for (int j = own; j < 32; ++j) out[j] = 0.0f;
      out += 32;
    }
}

struct Arena {
  float* next;
  float* take(ptrdiff_t count) {
    float* at = next;
    next += (count + 15) / 16 * 16;
#if defined(__SANITIZE_ADDRESS__)
    // A line behind every array that nothing may touch: the allocator sees one block only.
    ASAN_UNPOISON_MEMORY_REGION(at, sizeof(float) * static_cast<size_t>(next - at));
    ASAN_POISON_MEMORY_REGION(next, sizeof(float) * encoder_arena_gap);
    next += encoder_arena_gap;
#endif
    return at;
  }
};

struct Pack {
  int sequences, rows;
  const uint8_t* tokens[pack_sequences];
  int first_row[pack_sequences + 1];
};

struct Model {
  const TransformerShape& s;
  const EncoderLayout& at;
  const float* packed;
  const PositionalCodes& codes;
  float* gradient;
  const float* mask;

  int d() const { return s.embedding; }
  int wide() const { return padded(s.embedding); }
  int hidden_stride() const { return hidden_row(s.hidden); }
  const float* vector(const EncoderTensor& t) const { return packed + t.forward; }
  Right forward(const EncoderTensor& t) const {
    return Right{packed + t.forward, 32, 32 * static_cast<ptrdiff_t>(t.columns)};
  }
  Right backward(const EncoderTensor& t) const {
    return Right{packed + t.backward, 32, 32 * static_cast<ptrdiff_t>(t.rows)};
  }
  float* slope(const EncoderTensor& t) const { return gradient + t.gradient; }
};

BlockState make_block(Arena& arena, const TransformerShape& s, int rows, int attention_rows) {
  const ptrdiff_t wide = padded(s.embedding), high = hidden_row(s.hidden);
  BlockState b{};
  b.x = arena.take(rows * wide);
  b.queries = arena.take(rows * wide);
  b.mixed = arena.take(rows * wide);
  b.normal1 = arena.take(rows * wide);
  b.deviation1 = arena.take(rows);
  b.y = arena.take(rows * wide);
  b.active = arena.take(rows * high);
  b.hidden = arena.take(rows * high);
  b.normal2 = arena.take(rows * wide);
  b.deviation2 = arena.take(rows);
  b.out = arena.take(rows * wide);
  b.attention = arena.take(static_cast<ptrdiff_t>(s.length) * attention_rows);
  return b;
}

// Most rows a pack can have: one sequence with every site masked, or pack_rows.
int most_rows(const TransformerShape& s) { return s.length > pack_rows ? s.length : pack_rows; }
// Their attention columns, each sequence's rows padded.
int most_columns(const TransformerShape& s) { return most_rows(s) + padding * pack_sequences; }

// Y = LN1(X + (A X) Wvoᵀ), out = LN2(Y + relu(Y W1ᵀ + b1 + …) W2ᵀ + b2), for the rows of a pack at sites
// `site`.
void block_rows(const Model& model, const EncoderBlock& w, BlockState& b, int rows, const int* site) {
  const int wide = model.wide(), high = model.hidden_stride(), m = model.s.hidden;
  multiply(rows, wide, model.d(), rows_of(b.mixed, wide), model.forward(w.value_output), b.normal1, wide);
  for (int i = 0; i < rows * wide; i += lanes) store(b.normal1 + i, load(b.normal1 + i) + load(b.x + i));
  layer_norm(rows, model.d(), model.mask, model.vector(w.gain1), model.vector(w.bias1), b.normal1, wide,
             b.deviation1, b.y);

  multiply(rows, padded(m), model.d(), rows_of(b.y, wide), model.forward(w.weight1), b.active, high);
  const float* bias = model.vector(w.hidden_bias);
  for (int i = 0; i < rows; ++i) {
    float* active = b.active + static_cast<ptrdiff_t>(i) * high;
    float* hidden = b.hidden + static_cast<ptrdiff_t>(i) * high;
    const float* code = model.codes.hidden + static_cast<ptrdiff_t>(site[i]) * padded(m);
    for (int j = 0; j < padded(m); j += lanes) {
      const Vec positive = larger(load(active + j) + load(bias + j), Vec{});
      store(active + j, positive);
      store(hidden + j, positive + load(code + j));
    }
  }
  multiply(rows, wide, m, rows_of(b.hidden, high), model.forward(w.weight2), b.normal2, wide);
  const float* out_bias = model.vector(w.out_bias);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < wide; j += lanes) {
      float* z = b.normal2 + static_cast<ptrdiff_t>(i) * wide + j;
      store(z, load(z) + load(b.y + static_cast<ptrdiff_t>(i) * wide + j) + load(out_bias + j));
    }
  layer_norm(rows, model.d(), model.mask, model.vector(w.gain2), model.vector(w.bias2), b.normal2, wide,
             b.deviation2, b.out);
}

// From d out (in `slope`) to d(A X) in `mixed_slope` and the residual's share of dX in `slope`. work: rows ×
// hidden.
void block_rows_backward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                         float* slope, float* mixed_slope, float* work) {
  const int wide = model.wide(), high = model.hidden_stride(), d = model.d(), m = model.s.hidden;
  layer_norm_backward(rows, d, model.vector(w.gain2), b.normal2, b.deviation2, slope, wide,
                      model.slope(w.gain2), model.slope(w.bias2));
  add_columns(rows, wide, slope, wide, model.slope(w.out_bias));
  multiply_add(d, padded(m), rows, transposed(slope, wide), plain(b.hidden, high), model.slope(w.weight2),
               padded(m));
  multiply(rows, padded(m), d, rows_of(slope, wide), model.backward(w.weight2), work, high);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < padded(m); j += lanes) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(i) * high + j;
      store(work + at, load(b.active + at) > 0.0f ? load(work + at) : Vec{});
    }
  add_columns(rows, padded(m), work, high, model.slope(w.hidden_bias));
  multiply_add(m, wide, rows, transposed(work, high), plain(b.y, wide), model.slope(w.weight1), wide);
  multiply_add(rows, wide, m, rows_of(work, high), model.backward(w.weight1), slope, wide);  // + residual

  layer_norm_backward(rows, d, model.vector(w.gain1), b.normal1, b.deviation1, slope, wide,
                      model.slope(w.gain1), model.slope(w.bias1));
  multiply_add(d, wide, rows, transposed(slope, wide), plain(b.mixed, wide), model.slope(w.value_output),
               wide);
  multiply(rows, wide, d, rows_of(slope, wide), model.backward(w.value_output), mixed_slope, wide);
}

// logits = X Woutᵀ + bout at the pack's rows, and their loss; `logits` (rows × padded(V)) then holds the
// slope.
RowLoss head_rows(const Model& model, const float* x, int rows, const int32_t* target,
                  const float* row_weight, float* logits) {
  const int classes = padded(model.s.tokens), wide = model.wide();
  multiply(rows, classes, model.d(), rows_of(x, wide), model.forward(model.at.output), logits, classes);
  const float* bias = model.vector(model.at.output_bias);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < classes; k += lanes) {
      float* at = logits + static_cast<ptrdiff_t>(i) * classes + k;
      store(at, load(at) + load(bias + k));
    }
  return masked_cross_entropy(rows, model.s.tokens, target, row_weight, logits, classes);
}

void head_rows_backward(const Model& model, const float* x, int rows, const float* logits, float* slope) {
  const int classes = padded(model.s.tokens), wide = model.wide();
  multiply_add(model.s.tokens, wide, rows, transposed(logits, classes), plain(x, wide),
               model.slope(model.at.output), wide);
  add_columns(rows, classes, logits, classes, model.slope(model.at.output_bias));
  multiply(rows, wide, model.s.tokens, rows_of(logits, classes), model.backward(model.at.output), slope,
           wide);
}

}  // namespace
}  // namespace thermosphere
