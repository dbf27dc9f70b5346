// Where each tensor of a whole model lies. One walk over the tensors serves packing, gradient and reduction.
#pragma once

#include "encoder_gradient.h"
#include "partial_sums.h"

namespace thermosphere {

struct EncoderBlock {
  EncoderTensor query_key, value_output, gain1, bias1, weight1, hidden_bias, weight2, out_bias, gain2, bias2;
};

static inline AttentionNormTensors attention_norm_of(const EncoderBlock& b) {
  return {b.query_key, b.value_output, b.gain1, b.bias1};
}
static inline FeedforwardNormTensors feedforward_norm_of(const EncoderBlock& b) {
  return {b.weight1, b.hidden_bias, b.weight2, b.out_bias, b.gain2, b.bias2};
}

// Z W1ᵀ of the feed-forward network is two products, U with the first half of W1's columns and g with the
// second.
struct FeedForwardTensors {
  EncoderTensor gain1, bias1, weight1_site, weight1_pooled, hidden_bias, weight2, second_bias, residual,
      residual_bias, gain2, bias2;
};

// One block only: every query is at a mask, so queries depend on the site alone and scores are sums of two
// table entries, q_i·PE_j and q_i·E[x_j] (encoder_tables_cpu.h). Offsets in the packed weights, and of the
// tables' slopes in the gradient.
struct EncoderTables {
  ptrdiff_t code;                    // PEᵀ packed in panels, d × n
  ptrdiff_t rows;                    // E[mask] + PE, n × padded(d)
  ptrdiff_t queries;                 // rows Wqkᵀ / √d, n × padded(d)
  ptrdiff_t by_site;                 // queries · PEᵀ, n × padded(n)
  ptrdiff_t by_token;                // queries · Eᵀ, n × padded(V)
  ptrdiff_t bound;                   // largest of both together, n
  ptrdiff_t query_slope, row_slope;  // of queries and rows, n × padded(d)
  ptrdiff_t by_site_slope, by_token_slope;
};

// The feed-forward network: what depends on the site alone, as every masked site holds the mask, and what
// the pooling needs (feedforward_pooling_cpu.h).
struct FeedForwardTables {
  ptrdiff_t normal;     // x̂ of E[mask] + PE, n × padded(d)
  ptrdiff_t deviation;  // its 1/σ, n
  ptrdiff_t rows;       // U at a mask = LN1(E[mask] + PE), n × padded(d)
  ptrdiff_t hidden;     // U W1_siteᵀ + b1, n × padded(m)
  ptrdiff_t residual;   // U Wrᵀ + br, n × padded(m)
  ptrdiff_t centred;    // rows of E, then of PE, less their means, (V + n) × padded(d)
  ptrdiff_t centred_t;  // the same transposed, in panels, d × (V + n)
  ptrdiff_t scale;      // 1/σ of E[a] + PE_j, n × padded(V)
  ptrdiff_t row_slope;  // of rows, n × padded(d)
  ptrdiff_t slopes;     // in the gradient, all tables after one another:
  ptrdiff_t slope_floats;
  ptrdiff_t hidden_slope, residual_slope;  // as above
  ptrdiff_t centred_slope;                 // of E alone, V × padded(d)
  ptrdiff_t scale_slope;
};

struct EncoderLayout {
  EncoderTensor embedding, output, output_bias;
  EncoderBlock block[encoder_blocks_max];
  FeedForwardTensors feedforward;
  ptrdiff_t embedding_rows;  // packed: E with padded rows
  EncoderTables tables;
  FeedForwardTables feedforward_tables;
  bool has_tables;
  ptrdiff_t parameters, packed_floats, gradient_floats;
};

// Sequences whose masked rows go through the products together: about 64 rows fill the tiles' height. More
// would push the activations out of the second-level cache, or, in the feed-forward network, gain nothing (64
// to 256 rows within 4 %). More blocks than one take one sequence, with all its rows.
constexpr int encoder_sequences_max = 8;
static inline int encoder_pack_sequences(const EncoderShape& s) {
  return s.blocks == 1 ? encoder_sequences_max : 1;
}
// With dropout every site of a sequence is worked at, and a pack of the feed-forward network keeps them all.
constexpr int dropout_sequences_max = 4;
static inline int encoder_dropout_pack_sequences(const EncoderShape& s) {
  return s.network == EncoderNetwork::feedforward ? dropout_sequences_max : 1;
}
// Most rows a pack can have: one sequence with every site masked, or 64.
static inline int encoder_pack_rows(const EncoderShape& s) { return s.length > 64 ? s.length : 64; }

static inline void encoder_place_transformer(EncoderLayout& at, const EncoderShape& s) {
  const int d = s.embedding, m = s.hidden;
  at.embedding = encoder_place(at, s.tokens, d, true);
  at.embedding_rows = at.packed_floats;
  at.packed_floats += static_cast<ptrdiff_t>(s.tokens) * encoder_padded(d);
  for (int l = 0; l < s.blocks; ++l) {
    EncoderBlock& b = at.block[l];
    b.query_key = encoder_place(at, d, d, true);
    b.value_output = encoder_place(at, d, d, true);
    b.gain1 = encoder_place(at, 1, d, false);
    b.bias1 = encoder_place(at, 1, d, false);
    b.weight1 = encoder_place(at, m, d, true);
    b.hidden_bias = encoder_place(at, 1, m, false);
    b.weight2 = encoder_place(at, d, m, true);
    b.out_bias = encoder_place(at, 1, d, false);
    b.gain2 = encoder_place(at, 1, d, false);
    b.bias2 = encoder_place(at, 1, d, false);
  }
  at.output = encoder_place(at, s.tokens, d, true);
  at.output_bias = encoder_place(at, 1, s.tokens, false);
  if (s.blocks > 1) return;
  const ptrdiff_t n = s.length, wide = n * encoder_padded(d);
  const ptrdiff_t sites = n * encoder_padded(s.length), tokens = n * encoder_padded(s.tokens);
  EncoderTables& t = at.tables;
  t.code = at.packed_floats;
  t.rows = t.code + encoder_panels(d, s.length);
  t.queries = t.rows + wide;
  t.by_site = t.queries + wide;
  t.by_token = t.by_site + sites;
  t.bound = t.by_token + tokens;
  t.query_slope = t.bound + encoder_padded(s.length);
  t.row_slope = t.query_slope + wide;
  at.packed_floats = t.row_slope + wide;
  t.by_site_slope = at.gradient_floats;
  t.by_token_slope = t.by_site_slope + sites;
  at.gradient_floats = t.by_token_slope + tokens;
}

static inline void encoder_place_feedforward(EncoderLayout& at, const EncoderShape& s) {
  const int d = s.embedding, m = s.hidden;
  at.embedding_rows = at.packed_floats;
  at.embedding = encoder_place(at, s.tokens, d, false);
  FeedForwardTensors& f = at.feedforward;
  f.gain1 = encoder_place(at, 1, d, false);
  f.bias1 = encoder_place(at, 1, d, false);
  f.weight1_site = encoder_place(at, m, d, true);
  f.weight1_pooled = encoder_place(at, m, d, true);
  f.weight1_site.row = f.weight1_pooled.row = 2 * d;  // one tensor (m × 2d) in the flat vector
  f.weight1_pooled.flat = f.weight1_site.flat + d;
  f.hidden_bias = encoder_place(at, 1, m, false);
  f.weight2 = encoder_place(at, m, m, true);
  f.second_bias = encoder_place(at, 1, m, false);
  f.residual = encoder_place(at, m, d, true);
  f.residual_bias = encoder_place(at, 1, m, false);
  f.gain2 = encoder_place(at, 1, m, false);
  f.bias2 = encoder_place(at, 1, m, false);
  at.output = encoder_place(at, s.tokens, m, true);
  at.output_bias = encoder_place(at, 1, s.tokens, false);

  const ptrdiff_t n = s.length, wide = encoder_padded(d), high = n * encoder_padded(m);
  const ptrdiff_t scales = n * encoder_padded(s.tokens);
  FeedForwardTables& t = at.feedforward_tables;
  t.normal = at.packed_floats;
  t.rows = t.normal + n * wide;
  t.hidden = t.rows + n * wide;
  t.residual = t.hidden + high;
  t.centred = t.residual + high;
  t.centred_t = t.centred + (s.tokens + n) * wide;
  t.scale = t.centred_t + encoder_panels(d, s.tokens + s.length);
  t.deviation = t.scale + scales;
  t.row_slope = t.deviation + encoder_padded(s.length);
  at.packed_floats = t.row_slope + n * wide;
  t.slopes = t.hidden_slope = at.gradient_floats;
  t.residual_slope = t.hidden_slope + high;
  t.centred_slope = t.residual_slope + high;
  t.scale_slope = t.centred_slope + s.tokens * wide;
  at.gradient_floats = t.scale_slope + scales;
  t.slope_floats = at.gradient_floats - t.slopes;
}

// Tables serve activations that depend on a site and its token alone: none where elements are dropped.
static inline EncoderLayout encoder_layout(const EncoderShape& s, bool dropout = false) {
  EncoderLayout at{};
  at.has_tables = s.blocks == 1 && !dropout;
  if (s.network == EncoderNetwork::feedforward)
    encoder_place_feedforward(at, s);
  else
    encoder_place_transformer(at, s);
  return at;
}

// body(tensor) for every tensor, in the order of the flat vector.
template <class Body>
static inline void encoder_tensors(const EncoderLayout& at, const EncoderShape& s, const Body& body) {
  body(at.embedding);
  if (s.network == EncoderNetwork::feedforward) {
    const FeedForwardTensors& f = at.feedforward;
    const EncoderTensor* all[] = {&f.gain1,         &f.bias1,   &f.weight1_site, &f.weight1_pooled,
                                  &f.hidden_bias,   &f.weight2, &f.second_bias,  &f.residual,
                                  &f.residual_bias, &f.gain2,   &f.bias2};
    for (const EncoderTensor* t : all) body(*t);
  } else {
    for (int l = 0; l < s.blocks; ++l) {
      const EncoderBlock& b = at.block[l];
      const EncoderTensor* all[] = {&b.query_key,   &b.value_output, &b.gain1,    &b.bias1, &b.weight1,
                                    &b.hidden_bias, &b.weight2,      &b.out_bias, &b.gain2, &b.bias2};
      for (const EncoderTensor* t : all) body(*t);
    }
  }
  body(at.output);
  body(at.output_bias);
}

// Floats of an activation with what its last block of factors has more.
static inline ptrdiff_t dropout_floats(ptrdiff_t floats) {
  return (floats + dropout_block - 1) / dropout_block * dropout_block;
}
// Those of one sequence: X⁰, then two of each block, or F.
static inline ptrdiff_t encoder_dropout_floats(const EncoderShape& s) {
  const ptrdiff_t n = s.length, sites = dropout_floats(n * encoder_padded(s.embedding));
  if (s.network == EncoderNetwork::feedforward) return sites + dropout_floats(n * encoder_padded(s.hidden));
  return (1 + 2 * s.blocks) * sites;
}
static inline int64_t encoder_dropout_counters(const EncoderShape& s) {
  return encoder_dropout_floats(s) / 8;
}

// The work of one group of sequences of one chain.
struct EncoderGroup {
  const EncoderShape* shape;
  const EncoderLayout* layout;
  const SequenceSet* set;
  const PositionalCodes* codes;
  const float* packed;  // this chain's
  const int64_t* indices;
  const float* weights;  // null: `weight` for each
  float weight;
  int64_t first, last;  // positions in the batch
  float* gradient;      // padded, added to; null: forward only
  Dropout dropout;
  uint32_t chain;      // as dropout knows it
  float* arena;        // encoder_arena_floats(shape, dropout)
  double loss, error;  // out
};

ptrdiff_t encoder_arena_floats(const EncoderShape& shape, bool dropout = false);

// Stages of a chain's call in their order, each of them done for a piece of chain_pieces but for the groups.
// What is not the groups is a twentieth of a call: on one thread it would cost two threads as much again.
struct EncoderKernels {
  // The weights as products read them.
  void (*pack)(const EncoderLayout&, const EncoderShape&, const PositionalCodes&, const float* flat,
               float* packed, int64_t piece);
  // The tables made from them, some of the sites.
  void (*tables)(const EncoderLayout&, const EncoderShape&, const PositionalCodes&, float* packed,
                 int64_t piece);
  void (*group)(EncoderGroup&);
  // The slopes of the tables, added over the groups, and what they give at some of the sites.
  void (*table_slopes)(const EncoderLayout&, const EncoderShape&, const PositionalCodes&, float* packed,
                       float* partials, ptrdiff_t stride, int64_t groups, int64_t piece);
  // The flat gradient, some rows of each tensor: the sum of the groups' partial gradients, with what the
  // tables' slopes give.
  void (*finish)(const EncoderLayout&, const EncoderShape&, float* packed, float* partials, ptrdiff_t stride,
                 int64_t groups, float* gradient, int64_t piece);
  // Does `rounds` × 12 independent vector multiply-adds and returns the floating-point operations done: what
  // benchmarks divide by.
  double (*peak)(int64_t rounds, float* sink);
  // Of a transformer: adds Aᵀ of each block of sequences [first, last) of tokens (S, n) to sums (L × n ×
  // padded n).
  void (*add_attention)(const EncoderLayout&, const EncoderShape&, const PositionalCodes&,
                        const float* packed, const uint8_t* tokens, int64_t first, int64_t last, float* arena,
                        double* sums);
};

extern const EncoderKernels encoder_kernels_baseline;
extern const EncoderKernels encoder_kernels_v3;
extern const EncoderKernels encoder_kernels_v4;

}  // namespace thermosphere
