// The transformer, forward and backward, one pack of sequences at a time: read it beside
// models/transformer.py. Compiled once per instruction set; sums run in the order written, whatever the
// number of threads.
#include "attention_norm_cpu.h"
#include "encoder_layout.h"
#include "layer_norm_cpu.h"
#include "masked_cross_entropy_cpu.h"

#define THERMOSPHERE_JOIN2(a, b) a##b
#define THERMOSPHERE_JOIN(a, b) THERMOSPHERE_JOIN2(a, b)

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

struct Arena {
  float* next;
  float* take(ptrdiff_t count) {
    float* at = next;
    next += (count + 15) / 16 * 16;
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

void transformer_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                      const float* row_weight, Arena arena, RowLoss& total) {
  const TransformerShape& s = model.s;
  const int n = s.length, d = s.embedding, wide = model.wide(), last = s.blocks - 1;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(n) * wide;

  // X⁰ = E[x] + PE, and the full blocks, which have one sequence a pack.
  float* inputs[pack_sequences];
  for (int q = 0; q < pack.sequences; ++q) {
    inputs[q] = arena.take(plane);
    for (int j = 0; j < n; ++j) {
      const float* row = model.vector(model.at.embedding) + static_cast<ptrdiff_t>(pack.tokens[q][j]) * wide;
      const float* code = model.codes.embedding + static_cast<ptrdiff_t>(j) * wide;
      for (int k = 0; k < wide; k += lanes)
        store(inputs[q] + static_cast<ptrdiff_t>(j) * wide + k, load(row + k) + load(code + k));
    }
  }
  const int most = most_columns(s);
  float* work = arena.take((static_cast<ptrdiff_t>(d) + n) * most);
  BlockState full[encoder_blocks_max];
  int every[256];
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
  float* attention_of[pack_sequences];
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

  // logits = X Woutᵀ + bout, loss.
  const int classes = padded(s.tokens);
  float* logits = arena.take(static_cast<ptrdiff_t>(rows) * classes);
  multiply(rows, classes, d, rows_of(b.out, wide), model.forward(model.at.output), logits, classes);
  const float* bias = model.vector(model.at.output_bias);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < classes; k += lanes) {
      float* at = logits + static_cast<ptrdiff_t>(i) * classes + k;
      store(at, load(at) + load(bias + k));
    }
  const RowLoss loss = masked_cross_entropy(rows, s.tokens, target, row_weight, logits, classes);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  // Backward, in the same order upside down.
  const ptrdiff_t tall = most_rows(s);
  float* slope = arena.take(tall * wide);
  float* mixed_slope = arena.take(tall * wide);
  float* query_slope = arena.take(tall * wide);
  float* hidden_work = arena.take(tall * model.hidden_stride());
  float* x_slope = arena.take(plane);
  multiply_add(s.tokens, wide, rows, transposed(logits, classes), plain(b.out, wide),
               model.slope(model.at.output), wide);
  add_columns(rows, classes, logits, classes, model.slope(model.at.output_bias));
  multiply(rows, wide, s.tokens, rows_of(logits, classes), model.backward(model.at.output), slope, wide);
  block_rows_backward(model, w, b, rows, slope, mixed_slope, hidden_work);

  float* x_slopes[pack_sequences];
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

// Packs of whole sequences: as many as give pack_rows masked rows in one block, one where there are more
// blocks.
void group(EncoderGroup& g) {
  const TransformerShape& s = *g.shape;
  Arena arena{g.arena};
  float* mask = arena.take(padded(s.embedding));
  fill_mask(s.embedding, mask);
  const int most = most_rows(s);
  int* site = reinterpret_cast<int*>(arena.take(most));
  int32_t* target = reinterpret_cast<int32_t*>(arena.take(most));
  float* row_weight = arena.take(most);
  const Model model{s, *g.layout, g.packed, *g.codes, g.gradient, mask};
  const int limit = s.blocks == 1 ? pack_sequences : 1;
  RowLoss total{0.0, 0.0};
  Pack pack{};
  const auto flush = [&]() {
    if (pack.sequences > 0) transformer_pack(model, pack, site, target, row_weight, arena, total);
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

void pack_tensor(const EncoderTensor& t, const float* flat, float* packed) {
  const float* w = flat + t.flat;
  if (t.backward >= 0) {
    pack_transposed(t, w, packed + t.forward);
    pack_plain(t, w, packed + t.backward);
    return;
  }
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < padded(t.columns); ++j)
      packed[t.forward + static_cast<ptrdiff_t>(i) * padded(t.columns) + j] =
          j < t.columns ? w[static_cast<ptrdiff_t>(i) * t.columns + j] : 0.0f;
}

void pack(const EncoderLayout& at, const TransformerShape& s, const float* flat, float* packed) {
  pack_tensor(at.embedding, flat, packed);
  for (int l = 0; l < s.blocks; ++l) {
    const EncoderBlock& b = at.block[l];
    const EncoderTensor* all[] = {&b.query_key,   &b.value_output, &b.gain1,    &b.bias1, &b.weight1,
                                  &b.hidden_bias, &b.weight2,      &b.out_bias, &b.gain2, &b.bias2};
    for (const EncoderTensor* t : all) pack_tensor(*t, flat, packed);
  }
  pack_tensor(at.output, flat, packed);
  pack_tensor(at.output_bias, flat, packed);
}

}  // namespace

const EncoderKernels THERMOSPHERE_JOIN(encoder_kernels_, THERMOSPHERE_ISA) = {pack, group};

}  // namespace thermosphere
