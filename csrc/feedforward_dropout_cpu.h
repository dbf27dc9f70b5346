// The feed-forward network in training, where dropout makes every X⁰ its own: no tables, every site of a
// sequence goes through LN1, and masked rows through all three products. Read it beside
// models/feedforward.py.
#pragma once

#include "feedforward_rows_cpu.h"

namespace thermosphere {
namespace {

// What backward needs of one sequence's sites.
struct DroppedSites {
  const float* kept;          // factors of X⁰, n × wide
  float *normal, *deviation;  // x̂ (n × wide) and 1/σ of LN1
  float share;                // 1 / visible sites; 0 where there is none
};

// X⁰ with dropout, LN1, the mean over visible sites in `pooled`, U at masked sites in `masked`.
DroppedSites dropped_sites(const Model& model, const uint8_t* tokens, DropoutSource& dropout, int rows,
                           const int* site, float* u, Arena& arena, float* pooled, float* masked) {
  const EncoderShape& s = model.s;
  const int n = s.length, wide = model.wide();
  const ptrdiff_t plane = static_cast<ptrdiff_t>(n) * wide;
  DroppedSites b{};
  b.normal = arena.take(plane);
  b.deviation = arena.take(n);
  embed(model, tokens, b.normal);
  b.kept = dropout.next(arena, plane);
  drop(plane, b.normal, b.kept, b.normal);
  const FeedForwardTensors& w = model.at.feedforward;
  float mask[encoder_embedding_max];
  fill_mask(s.embedding, mask);
  layer_norm(n, s.embedding, mask, model.vector(w.gain1), model.vector(w.bias1), b.normal, wide, b.deviation,
             u);
  for (int k = 0; k < wide; k += lanes) store(pooled + k, Vec{});
  int visible = 0;
  for (int j = 0; j < n; ++j) {
    if (tokens[j] == s.tokens - 1) continue;
    ++visible;
    for (int k = 0; k < wide; k += lanes) store(pooled + k, load(pooled + k) + load(u + j * wide + k));
  }
  b.share = visible > 0 ? 1.0f / static_cast<float>(visible) : 0.0f;
  for (int k = 0; k < wide; k += lanes) store(pooled + k, load(pooled + k) * b.share);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < wide; k += lanes) store(masked + i * wide + k, load(u + site[i] * wide + k));
  return b;
}

// From dg and dU at masked sites to dE. `slope`: n × wide.
void dropped_sites_backward(const Model& model, const uint8_t* tokens, const DroppedSites& b, int rows,
                            const int* site, const float* pooled_slope, const float* masked_slope,
                            float* slope) {
  const EncoderShape& s = model.s;
  const int n = s.length, wide = model.wide();
  for (int j = 0; j < n; ++j) {
    const float share = tokens[j] == s.tokens - 1 ? 0.0f : b.share;
    for (int k = 0; k < wide; k += lanes) store(slope + j * wide + k, load(pooled_slope + k) * share);
  }
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < wide; k += lanes) {
      float* at = slope + site[i] * wide + k;
      store(at, load(at) + load(masked_slope + i * wide + k));
    }
  const FeedForwardTensors& w = model.at.feedforward;
  layer_norm_backward(n, s.embedding, model.vector(w.gain1), b.normal, b.deviation, slope, wide,
                      model.slope(w.gain1), model.slope(w.bias1));
  drop(static_cast<ptrdiff_t>(n) * wide, slope, b.kept, slope);
  add_token_rows(model, tokens, slope);
}

void feedforward_dropout_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                              const float* row_weight, Arena arena, RowLoss& total) {
  const EncoderShape& s = model.s;
  const FeedForwardTensors& w = model.at.feedforward;
  const int n = s.length, d = s.embedding, m = s.hidden, wide = model.wide(), width = padded(m);
  const int high = model.hidden_stride(), rows = pack.rows, sequences = pack.sequences;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(rows) * high;
  float* pooled = arena.take(static_cast<ptrdiff_t>(sequences) * wide);
  float* masked = arena.take(static_cast<ptrdiff_t>(rows) * wide);
  float* kept = arena.take(static_cast<ptrdiff_t>(rows) * width + dropout_block);  // factors of F
  float* site_work = arena.take(static_cast<ptrdiff_t>(n) * wide);
  DroppedSites sites[dropout_sequences_max];
  for (int q = 0; q < sequences; ++q) {
    DropoutSource dropout = model.dropout_of(pack, q);
    const ptrdiff_t first = pack.first_row[q];
    const int own = pack.first_row[q + 1] - pack.first_row[q];
    sites[q] = dropped_sites(model, pack.tokens[q], dropout, own, site + first, site_work, arena,
                             pooled + q * wide, masked + first * wide);
    dropout.fill(static_cast<ptrdiff_t>(own) * width,
                 kept + first * width);  // more than own, then written over
  }

  float* context = arena.take(static_cast<ptrdiff_t>(sequences) * width);
  multiply(sequences, width, d, rows_of(pooled, wide), model.forward(w.weight1_pooled), context, width);
  float* active = arena.take(plane);
  float* hidden = arena.take(plane);
  float* second = arena.take(plane);
  float* normal = arena.take(plane);
  float* deviation = arena.take(rows);
  float* out = arena.take(plane);
  multiply(rows, width, d, rows_of(masked, wide), model.forward(w.weight1_site), active, high);
  const float* hidden_bias = model.vector(w.hidden_bias);
  for (int q = 0; q < sequences; ++q)
    for (int i = pack.first_row[q]; i < pack.first_row[q + 1]; ++i)
      for (int j = 0; j < width; j += lanes) {
        float* at = active + i * high + j;
        const Vec positive = relu(load(at) + load(hidden_bias + j) + load(context + q * width + j));
        store(at, positive);
        store(hidden + i * high + j, positive + load(model.codes.hidden + site[i] * width + j));
      }
  multiply(rows, width, m, rows_of(hidden, high), model.forward(w.weight2), second, high);
  multiply(rows, width, d, rows_of(masked, wide), model.forward(w.residual), normal, high);
  const float *second_bias = model.vector(w.second_bias), *residual_bias = model.vector(w.residual_bias);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < width; j += lanes) {
      float *f = second + i * high + j, *z = normal + i * high + j;
      const Vec positive = relu(load(f) + load(second_bias + j));
      store(f, positive);
      store(z, load(z) + load(residual_bias + j) + positive * load(kept + i * width + j));
    }
  layer_norm(rows, m, model.mask, model.vector(w.gain2), model.vector(w.bias2), normal, high, deviation, out);
  float* logits = arena.take(static_cast<ptrdiff_t>(rows) * padded(s.tokens));
  const RowLoss loss = head_rows(model, out, high, rows, target, row_weight, logits);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  float* slope = arena.take(plane);
  head_rows_backward(model, out, high, rows, logits, slope);
  layer_norm_backward(rows, m, model.vector(w.gain2), normal, deviation, slope, high, model.slope(w.gain2),
                      model.slope(w.bias2));
  float* masked_slope = arena.take(static_cast<ptrdiff_t>(rows) * wide);
  add_columns(rows, width, slope, high, model.slope(w.residual_bias));
  multiply_add(m, wide, rows, transposed(slope, high), plain(masked, wide), model.slope(w.residual), wide);
  multiply(rows, wide, m, rows_of(slope, high), model.backward(w.residual), masked_slope, wide);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < width; j += lanes) {
      float* at = slope + i * high + j;
      const Vec df = load(at) * load(kept + i * width + j);
      store(at, load(second + i * high + j) > 0.0f ? df : Vec{});
    }
  add_columns(rows, width, slope, high, model.slope(w.second_bias));
  multiply_add(m, width, rows, transposed(slope, high), plain(hidden, high), model.slope(w.weight2), width);
  float* hidden_slope = out;  // read by the head alone
  multiply(rows, width, m, rows_of(slope, high), model.backward(w.weight2),
           Gate{hidden_slope, high, active, high, model.slope(w.hidden_bias)});
  multiply_add(m, wide, rows, transposed(hidden_slope, high), plain(masked, wide),
               model.slope(w.weight1_site), wide);
  multiply_add(rows, wide, m, rows_of(hidden_slope, high), model.backward(w.weight1_site), masked_slope,
               wide);
  float* context_slope = context;
  for (int q = 0; q < sequences; ++q) {
    float* own = context_slope + q * width;
    for (int j = 0; j < width; j += lanes) store(own + j, Vec{});
    add_columns(pack.first_row[q + 1] - pack.first_row[q], width, hidden_slope + pack.first_row[q] * high,
                high, own);
  }
  multiply_add(m, wide, sequences, transposed(context_slope, width), plain(pooled, wide),
               model.slope(w.weight1_pooled), wide);
  float* pooled_slope = pooled;
  multiply(sequences, wide, m, rows_of(context_slope, width), model.backward(w.weight1_pooled), pooled_slope,
           wide);
  for (int q = 0; q < sequences; ++q) {
    const ptrdiff_t first = pack.first_row[q];
    dropped_sites_backward(model, pack.tokens[q], sites[q], pack.first_row[q + 1] - pack.first_row[q],
                           site + first, pooled_slope + q * wide, masked_slope + first * wide, site_work);
  }
}

}  // namespace
}  // namespace thermosphere
