// The feed-forward network, forward and backward: read it beside models/feedforward.py. Every masked site
// holds the mask token, so U, U W1_siteᵀ + b1 and U Wrᵀ + br at masked rows depend on the site alone: tables
// of n rows, made once a chain, which spare two of the three large products a row. Their slopes are added up
// by site and turned into those of the weights once a chain (finish_feedforward). Exact.
#pragma once

#include "feedforward_pooling_cpu.h"

namespace thermosphere {
namespace {

void add_bias(int rows, int width, const float* bias, float* x) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < width; j += lanes) store(x + i * width + j, load(x + i * width + j) + load(bias + j));
}

// Of the sites `own`.
void make_feedforward_tables(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes,
                             float* packed, PieceRows own) {
  const int d = s.embedding, wide = padded(d), width = padded(s.hidden), sites = own.last - own.first;
  const ptrdiff_t first = own.first;
  const FeedForwardTables& t = at.feedforward_tables;
  const FeedForwardTensors& w = at.feedforward;
  make_pooling_table(at, s, packed, own);
  float mask[encoder_embedding_max];
  fill_mask(d, mask);
  const float* mask_row = packed + at.embedding_rows + (s.tokens - 1) * wide;
  float* normal = packed + t.normal + first * wide;
  for (int i = 0; i < sites; ++i)
    for (int k = 0; k < wide; k += lanes)
      store(normal + i * wide + k, load(mask_row + k) + load(codes.embedding + (first + i) * wide + k));
  layer_norm(sites, d, mask, packed + w.gain1.forward, packed + w.bias1.forward, normal, wide,
             packed + t.deviation + first, packed + t.rows + first * wide);
  const Left rows = rows_of(packed + t.rows + first * wide, wide);
  float* hidden = packed + t.hidden + first * width;
  multiply(sites, width, d, rows, Right{packed + w.weight1_site.forward, 32, 32L * d}, hidden, width);
  add_bias(sites, width, packed + w.hidden_bias.forward, hidden);
  float* residual = packed + t.residual + first * width;
  multiply(sites, width, d, rows, Right{packed + w.residual.forward, 32, 32L * d}, residual, width);
  add_bias(sites, width, packed + w.residual_bias.forward, residual);
}

// What backward needs of the rows of a pack; every array (rows × hidden_row(m)).
struct FeedForwardState {
  float* hidden;  // relu(Z W1ᵀ + b1) + PE
  float* second;  // F = relu(H W2ᵀ + b2)
  float *normal, *deviation, *out;
};

// context (sequences × padded(m)): g W1_pooledᵀ.
void feedforward_rows(const Model& model, const Pack& pack, const int* site, const float* context,
                      FeedForwardState& b) {
  const int m = model.s.hidden, width = padded(m), high = model.hidden_stride();
  const FeedForwardTensors& w = model.at.feedforward;
  const float* by_site = model.packed + model.at.feedforward_tables.hidden;
  const float* residual = model.packed + model.at.feedforward_tables.residual;
  for (int q = 0; q < pack.sequences; ++q)
    for (int i = pack.first_row[q]; i < pack.first_row[q + 1]; ++i)
      for (int j = 0; j < width; j += lanes) {
        const Vec positive = relu(load(by_site + site[i] * width + j) + load(context + q * width + j));
        store(b.hidden + i * high + j, positive + load(model.codes.hidden + site[i] * width + j));
      }
  multiply(pack.rows, width, m, rows_of(b.hidden, high), model.forward(w.weight2),
           Rectify{b.second, high, b.normal, high, model.vector(w.second_bias), residual, width, site});
  layer_norm(pack.rows, m, model.mask, model.vector(w.gain2), model.vector(w.bias2), b.normal, high,
             b.deviation, b.out);
}

// From d out (in `slope`, overwritten) to the slopes of W2, of the tables and of context; b.out is
// overwritten.
void feedforward_rows_backward(const Model& model, const Pack& pack, const int* site, const float* context,
                               FeedForwardState& b, float* slope, float* context_slope) {
  const int m = model.s.hidden, width = padded(m), high = model.hidden_stride(), rows = pack.rows;
  const FeedForwardTensors& w = model.at.feedforward;
  const FeedForwardTables& t = model.at.feedforward_tables;
  layer_norm_backward(rows, m, model.vector(w.gain2), b.normal, b.deviation, slope, high,
                      model.slope(w.gain2), model.slope(w.bias2));
  for (int i = 0; i < rows; ++i) {
    float* residual_slope = model.gradient + t.residual_slope + site[i] * width;
    for (int j = 0; j < width; j += lanes) {
      const Vec dz = load(slope + i * high + j);
      store(residual_slope + j, load(residual_slope + j) + dz);
      store(slope + i * high + j, load(b.second + i * high + j) > 0.0f ? dz : Vec{});
    }
  }
  add_columns(rows, width, slope, high, model.slope(w.second_bias));
  multiply_add(m, width, rows, transposed(slope, high), plain(b.hidden, high), model.slope(w.weight2), width);
  float* hidden_slope = b.out;
  multiply(rows, width, m, rows_of(slope, high), model.backward(w.weight2), hidden_slope, high);
  const float* by_site = model.packed + t.hidden;
  for (int q = 0; q < pack.sequences; ++q) {
    float* own = context_slope + q * width;
    for (int j = 0; j < width; j += lanes) store(own + j, Vec{});
    for (int i = pack.first_row[q]; i < pack.first_row[q + 1]; ++i) {
      float* site_slope = model.gradient + t.hidden_slope + site[i] * width;
      for (int j = 0; j < width; j += lanes) {
        const Vec before = load(by_site + site[i] * width + j) + load(context + q * width + j);
        const Vec dh = before > 0.0f ? load(hidden_slope + i * high + j) : Vec{};
        store(site_slope + j, load(site_slope + j) + dh);
        store(own + j, load(own + j) + dh);
      }
    }
  }
}

void feedforward_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                      const float* row_weight, Arena arena, RowLoss& total) {
  const EncoderShape& s = model.s;
  const FeedForwardTensors& w = model.at.feedforward;
  const int m = s.hidden, wide = model.wide(), width = padded(m), high = model.hidden_stride();
  const ptrdiff_t plane = static_cast<ptrdiff_t>(pack.rows) * high;
  Pooling pooling = make_pooling(arena, s, pack.sequences);
  float* context = arena.take(static_cast<ptrdiff_t>(pack.sequences) * width);
  pool(model, pack, pooling);
  multiply(pack.sequences, width, s.embedding, rows_of(pooling.pooled, wide), model.forward(w.weight1_pooled),
           context, width);
  FeedForwardState b{arena.take(plane), arena.take(plane), arena.take(plane), arena.take(pack.rows),
                     arena.take(plane)};
  feedforward_rows(model, pack, site, context, b);
  float* logits = arena.take(static_cast<ptrdiff_t>(pack.rows) * padded(s.tokens));
  const RowLoss loss = head_rows(model, b.out, high, pack.rows, target, row_weight, logits);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  float* slope = arena.take(plane);
  float* context_slope = arena.take(static_cast<ptrdiff_t>(pack.sequences) * width);
  float* pooled_slope = arena.take(static_cast<ptrdiff_t>(pack.sequences) * wide);
  float* work = arena.take(static_cast<ptrdiff_t>(pack.sequences) * padded(s.tokens + s.length));
  head_rows_backward(model, b.out, high, pack.rows, logits, slope);
  feedforward_rows_backward(model, pack, site, context, b, slope, context_slope);
  multiply_add(m, wide, pack.sequences, transposed(context_slope, width), plain(pooling.pooled, wide),
               model.slope(w.weight1_pooled), wide);
  multiply(pack.sequences, wide, m, rows_of(context_slope, width), model.backward(w.weight1_pooled),
           pooled_slope, wide);
  pool_backward(model, pack, pooling, pooled_slope, work);
}

// At some of the sites: dU = dhidden W1_site + dresidual Wr.
void feedforward_table_slopes(const EncoderLayout& at, const EncoderShape& s, float* packed, float* partials,
                              ptrdiff_t stride, int64_t groups, int64_t piece) {
  const int n = s.length, m = s.hidden, wide = padded(s.embedding), width = padded(m);
  const FeedForwardTables& t = at.feedforward_tables;
  const FeedForwardTensors& w = at.feedforward;
  const PieceRows own = piece_rows(n, piece);
  const ptrdiff_t first = own.first;
  add_table_groups(own, width, stride, groups, partials + t.hidden_slope);
  add_table_groups(own, width, stride, groups, partials + t.residual_slope);
  add_table_groups(own, padded(s.tokens), stride, groups, partials + t.scale_slope);
  add_table_groups(piece_rows(s.tokens, piece), wide, stride, groups, partials + t.centred_slope);
  pooling_coefficients(at, s, packed, partials, own);
  float* slope = packed + t.row_slope + first * wide;
  multiply(own.last - own.first, wide, m, rows_of(partials + t.hidden_slope + first * width, width),
           Right{packed + w.weight1_site.backward, 32, 32L * m}, slope, wide);
  multiply_add(own.last - own.first, wide, m, rows_of(partials + t.residual_slope + first * width, width),
               Right{packed + w.residual.backward, 32, 32L * m}, slope, wide);
}

// dW1_site += dhiddenᵀ U, dWr += dresidualᵀ U, some rows of each, and what the pooling gives to E; one piece
// does what is a sum over sites: the biases, and dU through LN1 to E[mask].
void finish_feedforward(const EncoderLayout& at, const EncoderShape& s, float* packed, float* partials,
                        int64_t piece) {
  const int n = s.length, d = s.embedding, m = s.hidden, wide = padded(d), width = padded(m);
  const FeedForwardTables& t = at.feedforward_tables;
  const FeedForwardTensors& w = at.feedforward;
  const float* hidden = partials + t.hidden_slope;
  const float* residual = partials + t.residual_slope;
  const Right rows = plain(packed + t.rows, wide);
  const PieceRows own = piece_rows(m, piece);
  const int units = own.last - own.first;
  multiply_add(units, wide, n, transposed(hidden + own.first, width), rows,
               partials + w.weight1_site.gradient + own.first * wide, wide);
  multiply_add(units, wide, n, transposed(residual + own.first, width), rows,
               partials + w.residual.gradient + own.first * wide, wide);
  if (piece == chain_pieces - 1) {
    add_columns(n, width, hidden, width, partials + w.hidden_bias.gradient);
    add_columns(n, width, residual, width, partials + w.residual_bias.gradient);
    float* slope = packed + t.row_slope;
    layer_norm_backward(n, d, packed + w.gain1.forward, packed + t.normal, packed + t.deviation, slope, wide,
                        partials + w.gain1.gradient, partials + w.bias1.gradient);
    add_columns(n, wide, slope, wide, partials + at.embedding.gradient + (s.tokens - 1) * wide);
  }
  finish_pooling(at, s, packed, partials, piece);
}

}  // namespace
}  // namespace thermosphere
