// The networks, forward and backward, one pack of sequences at a time: read it beside models/transformer.py;
// the feed-forward one is in feedforward_rows_cpu.h. Compiled once per instruction set; sums run in the order
// written, whatever the number of threads.
#include "encoder_rows_cpu.h"
#include "encoder_tables_cpu.h"
#include "feedforward_dropout_cpu.h"
#include "feedforward_rows_cpu.h"
#include "isa_name.h"
#include "mean_attention_cpu.h"

namespace thermosphere {
namespace {

// One sequence, every site but in the last block, which works at the masked ones.
void transformer_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                      const float* row_weight, Arena arena, RowLoss& total) {
  const EncoderShape& s = model.s;
  const int n = s.length, d = s.embedding, wide = model.wide(), last = s.blocks - 1, rows = pack.rows;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(n) * wide;
  const uint8_t* tokens = pack.tokens[0];
  DropoutSource dropout = model.dropout_of(pack, 0);
  float* x = arena.take(plane);
  embed(model, tokens, x);
  const float* kept = dropout.next(arena, plane);
  if (kept != nullptr) drop(plane, x, kept, x);
  float* work = arena.take((static_cast<ptrdiff_t>(d) + n) * padded(n));
  BlockState full[encoder_blocks_max];
  int every[encoder_length_max];
  for (int j = 0; j < n; ++j) every[j] = j;
  for (int l = 0; l < last; ++l) {
    full[l] = make_block(arena, s, n, padded(n), x);
    drop_in_block(arena, dropout, plane, full[l]);
    const BlockState b = full[l];
    block_attention(model, model.at.block[l], b, n, x, work);
    block_feedforward(model, model.at.block[l], b, n, every);
    x = b.out;
  }

  const EncoderBlock& w = model.at.block[last];
  BlockState b = make_block(arena, s, rows, padded(rows));
  drop_in_block(arena, dropout, static_cast<ptrdiff_t>(rows) * wide, b);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < wide; k += lanes)
      store(b.x + static_cast<ptrdiff_t>(i) * wide + k, load(x + static_cast<ptrdiff_t>(site[i]) * wide + k));
  block_attention(model, w, b, rows, x, work);
  block_feedforward(model, w, b, rows, site);

  float* logits = arena.take(static_cast<ptrdiff_t>(rows) * padded(s.tokens));
  const RowLoss loss = head_rows(model, b.out, wide, rows, target, row_weight, logits);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  // Backward, in the same order upside down.
  float* slope = arena.take(plane);
  float* mixed_slope = arena.take(plane);
  float* query_slope = arena.take(plane);
  float* hidden_work = arena.take(static_cast<ptrdiff_t>(n) * model.hidden_stride());
  float* x_slope = arena.take(plane);
  head_rows_backward(model, b.out, wide, rows, logits, slope);
  block_feedforward_backward(model, w, b, rows, slope, hidden_work);
  attention_norm_backward(rows, n, d, model, attention_norm_of(w), b.x, x, attention_state(b), slope, x_slope,
                          mixed_slope, query_slope, work);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < wide; k += lanes) {
      float* at = x_slope + static_cast<ptrdiff_t>(site[i]) * wide + k;
      store(at, load(at) + load(slope + static_cast<ptrdiff_t>(i) * wide + k));
    }

  for (int l = last - 1; l >= 0; --l) {
    const EncoderBlock& wl = model.at.block[l];
    block_feedforward_backward(model, wl, full[l], n, x_slope, hidden_work);
    attention_norm_backward(n, n, d, model, attention_norm_of(wl), full[l].x, full[l].x,
                            attention_state(full[l]), x_slope, slope, mixed_slope, query_slope, work);
    for (ptrdiff_t i = 0; i < plane; i += lanes) store(x_slope + i, load(x_slope + i) + load(slope + i));
  }
  if (kept != nullptr) drop(plane, x_slope, kept, x_slope);
  add_token_rows(model, tokens, x_slope);
}

using PackRows = void (*)(const Model&, const Pack&, const int* site, const int32_t* target,
                          const float* row_weight, Arena, RowLoss&);

PackRows pack_function(const EncoderShape& s, bool tables) {
  if (s.network == EncoderNetwork::feedforward) return tables ? feedforward_pack : feedforward_dropout_pack;
  return tables ? one_block_pack : transformer_pack;
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
  const bool dropout = g.dropout.threshold > 0;
  const Model model{{g.packed, g.gradient, mask}, s, *g.layout, *g.codes, g.dropout, g.chain};
  const int limit = dropout ? encoder_dropout_pack_sequences(s) : encoder_pack_sequences(s);
  const PackRows run = pack_function(s, g.layout->has_tables);
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
    pack.position[pack.sequences] = position;
    pack.first_row[pack.sequences] = pack.rows;
    pack.rows += own;
    pack.first_row[++pack.sequences] = pack.rows;
  }
  flush();
  g.loss = total.loss;
  g.error = total.error;
}

void pack(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, const float* flat,
          float* packed, int64_t piece) {
  int64_t number = 0;  // of panels, which differ less in size than tensors do
  const auto mine = [&] { return number++ % chain_pieces == piece; };
  encoder_tensors(at, s, [&](const EncoderTensor& t) { pack_tensor(t, flat + t.flat, packed, mine); });
  const EncoderTensor& e = at.embedding;
  if (s.network == EncoderNetwork::feedforward) {
    if (at.has_tables && mine()) centre_rows(at, s, codes, flat + e.flat, packed);
    return;
  }
  if (mine()) pad_rows(e.rows, e.columns, flat + e.flat, e.row, packed + at.embedding_rows);
  if (!at.has_tables) return;
  const int wide = padded(s.embedding);
  for (int p = 0; p < s.length; p += 32)
    if (mine())
      pack_transposed_panel(p, s.length, s.embedding, codes.embedding, wide, packed + at.tables.code);
}

void tables(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, float* packed,
            int64_t piece) {
  const PieceRows own = piece_rows(s.length, piece);
  if (s.network == EncoderNetwork::feedforward)
    make_feedforward_tables(at, s, codes, packed, own);
  else
    make_tables(at, s, codes, packed, own);
}

void table_slopes(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, float* packed,
                  float* partials, ptrdiff_t stride, int64_t groups, int64_t piece) {
  if (s.network == EncoderNetwork::feedforward)
    feedforward_table_slopes(at, s, packed, partials, stride, groups, piece);
  else
    attention_table_slopes(at, s, codes, packed, partials, stride, groups, piece);
}

void finish(const EncoderLayout& at, const EncoderShape& s, float* packed, float* partials, ptrdiff_t stride,
            int64_t groups, float* gradient, int64_t piece) {
  if (at.has_tables) {
    if (s.network == EncoderNetwork::feedforward)
      finish_feedforward(at, s, packed, partials, piece);
    else
      finish_tables(at, s, packed, partials, piece);
  }
  encoder_tensors(at, s, [&](const EncoderTensor& t) {
    add_partials(t, partials, stride, groups, piece, gradient + t.flat);
  });
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

const EncoderKernels THERMOSPHERE_ISA_NAME(encoder_kernels_) = {pack,   tables, group,        table_slopes,
                                                                finish, peak,   add_attention};

}  // namespace thermosphere
