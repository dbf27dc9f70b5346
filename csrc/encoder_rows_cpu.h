// A block and the output at some rows of a pack, forward and backward: the stages of the layers with a
// model's weights.
#pragma once

#include "arena.h"
#include "attention_norm_cpu.h"
#include "dropout_cpu.h"
#include "encoder_layout.h"
#include "feedforward_norm_cpu.h"
#include "masked_cross_entropy_cpu.h"

namespace thermosphere {
namespace {

// What backward needs of a block for R rows; every array (R × padded).
struct BlockState {
  float* x;                // input of the rows: queries' residual
  float *queries, *mixed;  // X Wqkᵀ, A X
  float *normal1, *deviation1, *y;
  float *active, *hidden;  // relu, relu + PE
  float *normal2, *deviation2, *out;
  float* attention;            // Pᵀ and z of attention_norm_cpu.h, (n + 1) × padded(rows)
  const float *kept1, *kept2;  // dropout's factors of (A X) Wvoᵀ and of H W2ᵀ + b2; null: nothing is dropped
};

struct Pack {
  int sequences, rows;
  const uint8_t* tokens[encoder_sequences_max];
  int first_row[encoder_sequences_max + 1];
  int64_t position[encoder_sequences_max];  // in the batch
};

struct Model : PackedWeights {
  const EncoderShape& s;
  const EncoderLayout& at;
  const PositionalCodes& codes;
  Dropout dropout{};
  uint32_t chain = 0;

  DropoutSource dropout_of(const Pack& pack, int q) const {
    if (dropout.threshold == 0) return {};
    return {dropout, chain, static_cast<uint32_t>(pack.position[q] * encoder_dropout_counters(s))};
  }
  int d() const { return s.embedding; }
  int wide() const { return padded(s.embedding); }
  int hidden_stride() const { return hidden_row(s.hidden); }
};

// x: the input of the rows, or null for room for it; block_attention: columns of Pᵀ.
BlockState make_block(Arena& arena, const EncoderShape& s, int rows, int block_attention,
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
  b.attention = arena.take((static_cast<ptrdiff_t>(s.length) + 1) * block_attention);
  return b;
}

// Of the next two activations of a sequence, rows × wide.
void drop_in_block(Arena& arena, DropoutSource& dropout, ptrdiff_t floats, BlockState& b) {
  b.kept1 = dropout.next(arena, floats);
  b.kept2 = dropout.next(arena, floats);
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

// dE += the slope of X⁰ (n × wide), by token.
void add_token_rows(const Model& model, const uint8_t* tokens, const float* slope) {
  const int wide = model.wide();
  for (int j = 0; j < model.s.length; ++j) {
    float* row = model.slope(model.at.embedding) + static_cast<ptrdiff_t>(tokens[j]) * wide;
    for (int k = 0; k < wide; k += lanes)
      store(row + k, load(row + k) + load(slope + static_cast<ptrdiff_t>(j) * wide + k));
  }
}

AttentionNormState attention_state(const BlockState& b) {
  return {b.queries, b.mixed, b.normal1, b.attention, b.deviation1, b.kept1};
}
FeedforwardNormState feedforward_state(const Model& model, const BlockState& b) {
  return {b.active, model.hidden_stride(), b.hidden, b.normal2, b.deviation2, b.kept2};
}

// The attention stage at b.x, r rows of the sequence x.
void block_attention(const Model& model, const EncoderBlock& w, const BlockState& b, int rows, const float* x,
                     float* work) {
  attention_norm(rows, model.s.length, model.d(), model, attention_norm_of(w), b.x, x, attention_state(b),
                 b.y, work);
}

// The feed-forward stage of a pack's rows at the sites `site`.
void block_feedforward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                       const int* site) {
  feedforward_norm(rows, model.d(), model.s.hidden, model, feedforward_norm_of(w), b.y, site,
                   model.codes.hidden, feedforward_state(model, b), b.out);
}
void block_feedforward_backward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                                float* slope, float* work) {
  feedforward_norm_backward(rows, model.d(), model.s.hidden, model, feedforward_norm_of(w), b.y,
                            feedforward_state(model, b), slope, work);
}

// Y = LN1(X + (A X) Wvoᵀ), out = LN2(Y + (relu(Y W1ᵀ + b1) + PE) W2ᵀ + b2) at the sites `site`.
void block_rows(const Model& model, const EncoderBlock& w, const BlockState& b, int rows, const int* site) {
  value_norm(rows, model.d(), model, attention_norm_of(w), b.x, b.mixed, nullptr, b.normal1, b.deviation1,
             b.y);
  block_feedforward(model, w, b, rows, site);
}

// From d out (in `slope`) to d(A X) in `mixed_slope` and the residual's share of dX in `slope`. work: rows ×
// hidden.
void block_rows_backward(const Model& model, const EncoderBlock& w, const BlockState& b, int rows,
                         float* slope, float* mixed_slope, float* work) {
  block_feedforward_backward(model, w, b, rows, slope, work);
  value_norm_backward(rows, model.d(), model, attention_norm_of(w), b.mixed, b.normal1, b.deviation1, slope,
                      slope);
  multiply(rows, model.wide(), model.d(), rows_of(slope, model.wide()), model.backward(w.value_output),
           mixed_slope, model.wide());
}

// logits and loss at the pack's rows, `stride` floats apart; `logits` (rows × padded(V)) then holds the
// slope.
RowLoss head_rows(const Model& model, const float* x, ptrdiff_t stride, int rows, const int32_t* target,
                  const float* row_weight, float* logits) {
  return output_cross_entropy(rows, model.s.tokens, model, {model.at.output, model.at.output_bias}, x, stride,
                              target, row_weight, logits);
}

void head_rows_backward(const Model& model, const float* x, ptrdiff_t stride, int rows, const float* logits,
                        float* slope) {
  output_backward(rows, model.s.tokens, model, {model.at.output, model.at.output_bias}, x, stride, logits,
                  slope);
}

}  // namespace
}  // namespace thermosphere
