// A block and the output at some rows of a pack, forward and backward: the stages of the layers with a
// model's weights.
#pragma once

#include "arena.h"
#include "attention_norm_cpu.h"
#include "encoder_layout.h"
#include "feedforward_norm_cpu.h"
#include "masked_cross_entropy_cpu.h"

namespace thermosphere {
namespace {

// Sequences whose masked rows go through the last block together: about 64 rows fill the tiles' height, and
// more would push the activations out of the second-level cache.
constexpr int pack_rows = 64;
constexpr int pack_sequences = 8;

// What backward needs of a block for R rows; every array (R × padded).
struct BlockState {
  float* x;                // input of the rows: queries' residual
  float *queries, *mixed;  // X Wqkᵀ, A X
  float *normal1, *deviation1, *y;
  float *active, *hidden;  // relu, relu + PE
  float *normal2, *deviation2, *out;
  float* attention;  // Aᵀ, n × padded(rows)
};

struct Pack {
  int sequences, rows;
  const uint8_t* tokens[pack_sequences];
  int first_row[pack_sequences + 1];
};

struct Model : PackedWeights {
  const TransformerShape& s;
  const EncoderLayout& at;
  const PositionalCodes& codes;

  int d() const { return s.embedding; }
  int wide() const { return padded(s.embedding); }
  int hidden_stride() const { return hidden_row(s.hidden); }
};

// x: the input of the rows, or null for room for it; attention_rows: columns of Aᵀ.
BlockState make_block(Arena& arena, const TransformerShape& s, int rows, int attention_rows,
                      float* x = nullptr) {
  const ptrdiff_t wide = padded(s.embedding), high = hidden_row(s.hidden);
  BlockState b{};
  b.x = x != nullptr ? x : arena.take(rows * wide);
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

// X⁰ = E[tokens] + PE, n × wide.
void embed(const Model& model, const uint8_t* tokens, float* x) {
  const int wide = model.wide();
  for (int j = 0; j < model.s.length; ++j) {
    const float* row = model.packed + model.at.embedding_rows + static_cast<ptrdiff_t>(tokens[j]) * wide;
    const float* code = model.codes.embedding + static_cast<ptrdiff_t>(j) * wide;
    for (int k = 0; k < wide; k += lanes)
      store(x + static_cast<ptrdiff_t>(j) * wide + k, load(row + k) + load(code + k));
  }
}

AttentionNormState attention_state(const BlockState& b) {
  return {b.queries, b.mixed, b.normal1, b.attention, b.deviation1};
}

// The attention stage at b.x, r rows of the sequence x.
void attention_rows(const Model& model, const EncoderBlock& w, const BlockState& b, int rows, const float* x,
                    float* work) {
  attention_norm(rows, model.s.length, model.d(), model, attention_norm_of(w), b.x, x, attention_state(b),
                 b.y, work);
}

// The feed-forward stage of a pack's rows at the sites `site`.
void feedforward_rows(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                      const int* site) {
  feedforward_norm(rows, model.d(), model.s.hidden, model, feedforward_norm_of(w), b.y, site,
                   model.codes.hidden, {b.active, model.hidden_stride(), b.hidden, b.normal2, b.deviation2},
                   b.out);
}
void feedforward_rows_backward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                               float* slope, float* work) {
  feedforward_norm_backward(rows, model.d(), model.s.hidden, model, feedforward_norm_of(w), b.y,
                            {b.active, model.hidden_stride(), b.hidden, b.normal2, b.deviation2}, slope,
                            work);
}

// Most rows a pack can have: one sequence with every site masked, or pack_rows.
int most_rows(const TransformerShape& s) { return s.length > pack_rows ? s.length : pack_rows; }

// Y = LN1(X + (A X) Wvoᵀ), out = LN2(Y + (relu(Y W1ᵀ + b1) + PE) W2ᵀ + b2) at the sites `site`.
void block_rows(const Model& model, const EncoderBlock& w, const BlockState& b, int rows, const int* site) {
  value_norm(rows, model.d(), model, attention_norm_of(w), b.x, b.mixed, b.normal1, b.deviation1, b.y);
  feedforward_rows(model, w, b, rows, site);
}

// From d out (in `slope`) to d(A X) in `mixed_slope` and the residual's share of dX in `slope`. work: rows ×
// hidden.
void block_rows_backward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                         float* slope, float* mixed_slope, float* work) {
  feedforward_rows_backward(model, w, b, rows, slope, work);
  value_norm_backward(rows, model.d(), model, attention_norm_of(w), b.mixed, b.normal1, b.deviation1, slope,
                      mixed_slope);
}

// logits and loss at the pack's rows; `logits` (rows × padded(V)) then holds the slope.
RowLoss head_rows(const Model& model, const float* x, int rows, const int32_t* target,
                  const float* row_weight, float* logits) {
  return output_cross_entropy(rows, model.d(), model.s.tokens, model, {model.at.output, model.at.output_bias},
                              x, target, row_weight, logits);
}

void head_rows_backward(const Model& model, const float* x, int rows, const float* logits, float* slope) {
  output_backward(rows, model.d(), model.s.tokens, model, {model.at.output, model.at.output_bias}, x, logits,
                  slope);
}

}  // namespace
}  // namespace thermosphere
