// The networks, forward and backward, one pack of sequences at a time: read it beside models/transformer.py;
// the feed-forward one is in feedforward_rows_cpu.h. Compiled once per instruction set; sums run in the order
// written, whatever the number of threads.
#include "attention_norm_cpu.h"
#include "encoder_rows_cpu.h"
#include "encoder_tables_cpu.h"
#include "feedforward_rows_cpu.h"

#define THERMOSPHERE_JOIN2(a, b) a##b
#define THERMOSPHERE_JOIN(a, b) THERMOSPHERE_JOIN2(a, b)

namespace thermosphere {
namespace {

void transformer_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                      const float* row_weight, Arena arena, RowLoss& total) {
  const EncoderShape& s = model.s;
  const int n = s.length, d = s.embedding, wide = model.wide(), last = s.blocks - 1;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(n) * wide;

  // X⁰ = E[x] + PE, and the full blocks, which have one sequence a pack.
  float* inputs[encoder_sequences_max];
  for (int q = 0; q < pack.sequences; ++q) {
    inputs[q] = arena.take(plane);
    for (int j = 0; j < n; ++j) {
      const float* row =
          model.packed + model.at.embedding_rows + static_cast<ptrdiff_t>(pack.tokens[q][j]) * wide;
      const float* code = model.codes.embedding + static_cast<ptrdiff_t>(j) * wide;
      for (int k = 0; k < wide; k += lanes)
        store(inputs[q] + static_cast<ptrdiff_t>(j) * wide + k, load(row + k) + load(code + k));
    }
  }
  const int most = most_columns(s);
  float* work = arena.take((static_cast<ptrdiff_t>(d) + n) * most);
  BlockState full[encoder_blocks_max];
  int every[encoder_length_max];
  for (int j = 0; j < n; ++j) every[j] = j;
  float* x = inputs[0];
  for (int l = 0; l < last; ++l) {
    BlockState& b = full[l] = make_block(arena, s, n, padded(n));
    b.x = x;
    multiply(n, wide, d, rows_of(x, wide), model.forward(model.at.block[l].query_key), b.queries, wide);
    attention(n, n, d, b.queries, wide, x, wide, b.attention, b.mixed, work);
    block_rows(model, model.at.block[l], b, n, every);
    x = b.out;
  }
  if (last > 0) inputs[0] = x;

  // The last block at the masked rows.
  const EncoderBlock& w = model.at.block[last];
  const int rows = pack.rows;
  BlockState b = make_block(arena, s, rows, most);
  float* attention_of[encoder_sequences_max];
  float* next_attention = b.attention;
  for (int q = 0; q < pack.sequences; ++q)
    for (int i = pack.first_row[q]; i < pack.first_row[q + 1]; ++i)
      for (int k = 0; k < wide; k += lanes)
        store(b.x + static_cast<ptrdiff_t>(i) * wide + k,
              load(inputs[q] + static_cast<ptrdiff_t>(site[i]) * wide + k));
  multiply(rows, wide, d, rows_of(b.x, wide), model.forward(w.query_key), b.queries, wide);
  for (int q = 0; q < pack.sequences; ++q) {
    const int first = pack.first_row[q], own = pack.first_row[q + 1] - first;
    attention_of[q] = next_attention;
    next_attention += static_cast<ptrdiff_t>(n) * padded(own);
    attention(own, n, d, b.queries + static_cast<ptrdiff_t>(first) * wide, wide, inputs[q], wide,
              attention_of[q], b.mixed + static_cast<ptrdiff_t>(first) * wide, work);
  }
  block_rows(model, w, b, rows, site);

  float* logits = arena.take(static_cast<ptrdiff_t>(rows) * padded(s.tokens));
  const RowLoss loss = head_rows(model, b.out, wide, rows, target, row_weight, logits);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  // Backward, in the same order upside down.
  const ptrdiff_t tall = encoder_pack_rows(s);
  float* slope = arena.take(tall * wide);
  float* mixed_slope = arena.take(tall * wide);
  float* query_slope = arena.take(tall * wide);
  float* hidden_work = arena.take(tall * model.hidden_stride());
  float* x_slope = arena.take(plane);
  head_rows_backward(model, b.out, wide, rows, logits, slope);
  block_rows_backward(model, w, b, rows, slope, mixed_slope, hidden_work);

  float* x_slopes[encoder_sequences_max];
  for (int q = 0; q < pack.sequences; ++q) {
    const int first = pack.first_row[q], own = pack.first_row[q + 1] - first;
    const ptrdiff_t o = static_cast<ptrdiff_t>(first) * wide;
    x_slopes[q] = q == 0 ? x_slope : arena.take(plane);
    attention_backward(own, n, d, b.queries + o, wide, inputs[q], wide, attention_of[q], mixed_slope + o,
                       query_slope + o, x_slopes[q], work);
  }
  multiply_add(d, wide, rows, transposed(query_slope, wide), plain(b.x, wide), model.slope(w.query_key),
               wide);
  multiply_add(rows, wide, d, rows_of(query_slope, wide), model.backward(w.query_key), slope, wide);
  for (int q = 0; q < pack.sequences; ++q)
    for (int i = pack.first_row[q]; i < pack.first_row[q + 1]; ++i)
      for (int k = 0; k < wide; k += lanes) {
        float* at = x_slopes[q] + static_cast<ptrdiff_t>(site[i]) * wide + k;
        store(at, load(at) + load(slope + static_cast<ptrdiff_t>(i) * wide + k));
      }

  for (int l = last - 1; l >= 0; --l) {
    const EncoderBlock& wl = model.at.block[l];
    block_rows_backward(model, wl, full[l], n, x_slope, mixed_slope, hidden_work);
    attention_backward(n, n, d, full[l].queries, wide, full[l].x, wide, full[l].attention, mixed_slope,
                       query_slope, slope, work);
    multiply_add(d, wide, n, transposed(query_slope, wide), plain(full[l].x, wide), model.slope(wl.query_key),
                 wide);
    multiply_add(n, wide, d, rows_of(query_slope, wide), model.backward(wl.query_key), x_slope, wide);
    for (ptrdiff_t i = 0; i < plane; i += lanes) store(x_slope + i, load(x_slope + i) + load(slope + i));
  }
  for (int q = 0; q < pack.sequences; ++q)
    for (int j = 0; j < n; ++j) {
      float* row = model.slope(model.at.embedding) + static_cast<ptrdiff_t>(pack.tokens[q][j]) * wide;
      for (int k = 0; k < wide; k += lanes)
        store(row + k, load(row + k) + load(x_slopes[q] + static_cast<ptrdiff_t>(j) * wide + k));
    }
}

using PackRows = void (*)(const Model&, const Pack&, const int* site, const int32_t* target,
                          const float* row_weight, Arena, RowLoss&);

PackRows pack_function(const EncoderShape& s) {
  if (s.network == EncoderNetwork::feedforward) return feedforward_pack;
  return s.blocks == 1 ? one_block_pack : transformer_pack;
}

// Packs of whole sequences.
void group(EncoderGroup& g) {
  const EncoderShape& s = *g.shape;
  Arena arena{g.arena};
  const int features = g.layout->output.columns;
  float* mask = arena.take(padded(features));
  fill_mask(features, mask);
  const int most = encoder_pack_rows(s);
  int* site = reinterpret_cast<int*>(arena.take(most));
  int32_t* target = reinterpret_cast<int32_t*>(arena.take(most));
  float* row_weight = arena.take(most);
  const Model model{s, *g.layout, g.packed, *g.codes, g.gradient, mask};
  const int limit = encoder_pack_sequences(s);
  const PackRows run = pack_function(s);
  RowLoss total{0.0, 0.0};
  Pack pack{};
  const auto flush = [&]() {
    if (pack.sequences > 0) run(model, pack, site, target, row_weight, arena, total);
    pack.sequences = pack.rows = 0;
  };
  for (int64_t position = g.first; position < g.last; ++position) {
    const float weight = g.weights != nullptr ? g.weights[position] : g.weight;
    if (weight == 0.0f) continue;
    const int64_t sequence = g.indices != nullptr ? g.indices[position] : position;
    const int64_t first = g.set->first[sequence];
    const int own = static_cast<int>(g.set->first[sequence + 1] - first);
    if (pack.sequences == limit || pack.rows + own > most) flush();
    const float share = weight / static_cast<float>(own);
    for (int i = 0; i < own; ++i) {
      site[pack.rows + i] = g.set->site[first + i];
      target[pack.rows + i] = g.set->target[first + i];
      row_weight[pack.rows + i] = share;
    }
    pack.tokens[pack.sequences] = g.set->tokens + sequence * s.length;
    pack.first_row[pack.sequences] = pack.rows;
    pack.rows += own;
    pack.first_row[++pack.sequences] = pack.rows;
  }
  flush();
  g.loss = total.loss;
  g.error = total.error;
}

// W with padded rows.
void pack_rows_of(const EncoderTensor& t, const float* flat, float* out) {
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < padded(t.columns); ++j)
      *out++ = j < t.columns ? flat[t.flat + static_cast<ptrdiff_t>(i) * t.row + j] : 0.0f;
}

void pack_tensor(const EncoderTensor& t, const float* flat, float* packed) {
  const float* w = flat + t.flat;
  if (t.backward >= 0) {
    pack_transposed(t.rows, t.columns, w, t.row, packed + t.forward);
    pack_plain(t, w, packed + t.backward);
    return;
  }
  pack_rows_of(t, flat, packed + t.forward);
}

void pack(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, const float* flat,
          float* packed) {
  encoder_tensors(at, s, [&](const EncoderTensor& t) { pack_tensor(t, flat, packed); });
  pack_rows_of(at.embedding, flat, packed + at.embedding_rows);
  if (s.network == EncoderNetwork::feedforward)
    make_feedforward_tables(at, s, codes, packed);
  else if (s.blocks == 1)
    make_tables(at, s, codes, packed);
}

void finish(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, const float* packed,
            float* partials, ptrdiff_t stride, int64_t groups, float* arena) {
  if (s.network == EncoderNetwork::feedforward)
    finish_feedforward(at, s, packed, partials, stride, groups, Arena{arena});
  else if (s.blocks == 1)
    finish_tables(at, s, codes, packed, partials, stride, groups, Arena{arena});
}

double peak(int64_t rounds, float* sink) {
  Vec chain[12];
  for (int i = 0; i < 12; ++i) chain[i] = splat(1.0f + static_cast<float>(i) + *sink);
  const Vec factor = splat(1.0000001f), term = splat(1e-9f);
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < 12; ++i) chain[i] = chain[i] * factor + term;
  for (int i = 0; i < 12; ++i) *sink += sum(chain[i]);
  return static_cast<double>(rounds) * 12 * 2 * lanes;
}

}  // namespace

const EncoderKernels THERMOSPHERE_JOIN(encoder_kernels_, THERMOSPHERE_ISA) = {pack, group, finish, peak};

}  // namespace thermosphere
