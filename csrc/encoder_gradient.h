// Loss and gradient of a whole masked language model over a flat weight vector, for many chains; plain
// structs only.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace thermosphere {

// The largest sizes. The kernel has arrays of encoder_blocks_max and encoder_length_max; the cross-entropy
// takes any number of tokens and the products any width, up to what the tests cover.
constexpr int encoder_blocks_max = 16;
constexpr int encoder_embedding_max = 128;
constexpr int encoder_hidden_max = 512;
constexpr int encoder_length_max = 256;
constexpr int encoder_tokens_max = 64;

enum class EncoderNetwork : int { transformer, feedforward };

// L blocks (1 for the feed-forward network), embedding d, hidden m, length n, V tokens; the flat vector is in
// the order of models/transformer.py or models/feedforward.py.
struct EncoderShape {
  EncoderNetwork network;
  int blocks, embedding, hidden, length, tokens;
};

// A masked sequence set. Sequence s has the masked sites site[first[s] … first[s + 1]), each with its true
// residue.
struct SequenceSet {
  int64_t count;
  const uint8_t* tokens;  // (S, n), the mask token at masked sites
  const int64_t* first;   // (S + 1)
  const int32_t* site;
  const int32_t* target;
};

// Positional codes, rows padded to 16 floats: (n, d) and (n, m).
struct PositionalCodes {
  const float* embedding;
  const float* hidden;
};

// Training only; where: models/transformer.py and models/feedforward.py. Factors: dropout_cpu.h.
struct Dropout {
  uint32_t threshold;  // rate · 65,536, below 65,536; 0: none
  uint64_t seed;
};
constexpr int dropout_block = 256;  // elements of a block of counters

struct EncoderCall {
  EncoderShape shape;
  SequenceSet set;
  PositionalCodes codes;
  int64_t chains, parameters, batch;
  const float* weights;          // (C, N)
  const int64_t* indices;        // (C, B), or null: every chain takes sequences 0 … B - 1
  const float* example_weights;  // (C, B), or null: 1/B each
  float* gradient;               // (C, N) out, or null: forward only
  double* losses;                // (C) out
  double* errors;                // (C) out: weighted share of masked sites predicted wrong
  float* work;                   // encoder_work_floats(...) floats, 64-byte aligned
  Dropout dropout;               // chain c draws as number c, a sequence by its position in the batch
};

// Scratch of a call for all chains: packed weights and the groups' partial gradients.
int64_t encoder_work_floats(const EncoderShape& shape, int64_t chains, bool gradient);
// std::invalid_argument unless all indices are positions in the set, and dropout has counters for the batch.
void check_batch(const EncoderCall& call);
void encoder_gradient(const EncoderCall& call, int threads);

}  // namespace thermosphere
