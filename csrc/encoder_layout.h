// Where each tensor of the model lies: in the flat vector, in the packed weights (what products read) and in
// the padded gradient (what products write). One walk over the tensors serves packing, gradient and
// reduction.
#pragma once

#include "encoder_gradient.h"

namespace thermosphere {

// One tensor (rows × columns) of the flat vector; a vector has one row.
struct EncoderTensor {
  int rows, columns;
  ptrdiff_t flat;      // offset in the flat vector
  ptrdiff_t gradient;  // offset in the padded gradient, rows of padded(columns)
  ptrdiff_t forward;   // packed Wᵀ (columns × rows) in panels of 32, for x Wᵀ; vectors and the embedding:
                       // padded rows
  ptrdiff_t backward;  // packed W (rows × columns) in panels of 32, for dy W; -1 where none is needed
};

struct EncoderBlock {
  EncoderTensor query_key, value_output, gain1, bias1, weight1, hidden_bias, weight2, out_bias, gain2, bias2;
};

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

static inline int encoder_padded(int size) { return (size + 15) / 16 * 16; }
static inline ptrdiff_t encoder_panels(int depth, int columns) {
  return static_cast<ptrdiff_t>(depth) * ((columns + 31) / 32 * 32);
}

static inline EncoderTensor encoder_place(EncoderLayout& at, int rows, int columns, bool product) {
  EncoderTensor t{rows, columns, at.parameters, at.gradient_floats, at.packed_floats, -1};
  const ptrdiff_t padded = static_cast<ptrdiff_t>(rows) * encoder_padded(columns);
  at.parameters += static_cast<ptrdiff_t>(rows) * columns;
  at.gradient_floats += padded;
  if (product) {
    at.packed_floats += encoder_panels(columns, rows);
    t.backward = at.packed_floats;
    at.packed_floats += encoder_panels(rows, columns);
  } else {
    at.packed_floats += padded;
  }
  return t;
}

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

// Floats left behind every array of the arena: none, but where AddressSanitizer watches them.
#if defined(__SANITIZE_ADDRESS__)
constexpr int encoder_arena_gap = 16;
#else
constexpr int encoder_arena_gap = 0;
#endif

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
};

extern const EncoderKernels encoder_kernels_baseline;
extern const EncoderKernels encoder_kernels_v3;
extern const EncoderKernels encoder_kernels_v4;

}  // namespace thermosphere
