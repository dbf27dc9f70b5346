// Where each tensor of a whole model lies. One walk over the tensors serves packing, gradient and reduction.
#pragma once

#include "encoder_gradient.h"
#include "encoder_tensor.h"

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

// One block only: every query is at a mask, so queries depend on the site alone and scores are sums of two
// table entries, q_i·PE_j and q_i·E[x_j] (encoder_tables_cpu.h). Offsets in the packed weights, and of the
// tables' slopes in the gradient.
struct EncoderTables {
  ptrdiff_t code;      // PEᵀ packed in panels, d × n
  ptrdiff_t rows;      // E[mask] + PE, n × padded(d)
  ptrdiff_t queries;   // rows Wqkᵀ / √d, n × padded(d)
  ptrdiff_t by_site;   // queries · PEᵀ, n × padded(n)
  ptrdiff_t by_token;  // queries · Eᵀ, n × padded(V)
  ptrdiff_t by_site_slope, by_token_slope;
};

struct EncoderLayout {
  EncoderTensor embedding, output, output_bias;
  EncoderBlock block[encoder_blocks_max];
  ptrdiff_t embedding_rows;  // packed: E with padded rows
  EncoderTables tables;
  ptrdiff_t parameters, packed_floats, gradient_floats;
};

static inline EncoderLayout encoder_layout(const TransformerShape& s) {
  EncoderLayout at{};
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
  if (s.blocks == 1) {
    const ptrdiff_t n = s.length, wide = n * encoder_padded(d);
    const ptrdiff_t sites = n * encoder_padded(s.length), tokens = n * encoder_padded(s.tokens);
    EncoderTables& t = at.tables;
    t.code = at.packed_floats;
    t.rows = t.code + encoder_panels(d, s.length);
    t.queries = t.rows + wide;
    t.by_site = t.queries + wide;
    t.by_token = t.by_site + sites;
    at.packed_floats = t.by_token + tokens;
    t.by_site_slope = at.gradient_floats;
    t.by_token_slope = t.by_site_slope + sites;
    at.gradient_floats = t.by_token_slope + tokens;
  }
  return at;
}

// The work of one group of sequences of one chain.
struct EncoderGroup {
  const TransformerShape* shape;
  const EncoderLayout* layout;
  const SequenceSet* set;
  const PositionalCodes* codes;
  const float* packed;  // this chain's
  const int64_t* indices;
  const float* weights;  // null: `weight` for each
  float weight;
  int64_t first, last;  // positions in the batch
  float* gradient;      // padded, added to; null: forward only
  float* arena;         // encoder_arena_floats(shape)
  double loss, error;   // out
};

ptrdiff_t encoder_arena_floats(const TransformerShape& shape);

struct EncoderKernels {
  void (*pack)(const EncoderLayout&, const TransformerShape&, const PositionalCodes&, const float* flat,
               float* packed);
  void (*group)(EncoderGroup&);
  // After the groups of a chain: adds what the tables' slopes give to the first of its `groups` partial
  // gradients.
  void (*finish)(const EncoderLayout&, const TransformerShape&, const PositionalCodes&, const float* packed,
                 float* partials, ptrdiff_t stride, int64_t groups, float* arena);
  // Does `rounds` × 12 independent vector multiply-adds and returns the floating-point operations done: what
  // benchmarks divide by.
  double (*peak)(int64_t rounds, float* sink);
  // Adds Aᵀ of each block of sequences [first, last) of tokens (S, n) to sums (L × n × padded n).
  void (*add_attention)(const EncoderLayout&, const TransformerShape&, const PositionalCodes&,
                        const float* packed, const uint8_t* tokens, int64_t first, int64_t last, float* arena,
                        double* sums);
};

extern const EncoderKernels encoder_kernels_baseline;
extern const EncoderKernels encoder_kernels_v3;
extern const EncoderKernels encoder_kernels_v4;

}  // namespace thermosphere
