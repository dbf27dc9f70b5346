// What the launchers of the layers ask of an instruction set: pack one chain's weights, do one task of one
// chain. Arguments are plain; `packed` and `partial` are laid out by the functions below.
#pragma once

#include "attention_norm.h"
#include "encoder_tensor.h"
#include "feedforward_norm.h"
#include "masked_cross_entropy.h"

namespace thermosphere {

// Rows of a chain that the row-wise layers take at once: their activations stay in the second-level cache and
// fill the tiles' height.
constexpr int64_t chunk_rows = 64;

struct AttentionNormKernels {
  void (*pack)(const AttentionNormCall&, int64_t chain, float* packed);
  void (*forward)(const AttentionNormCall&, int64_t chain, int64_t sequence, const float* packed,
                  float* arena);
  // Sequences [first, last) of a chain, their slopes of the weights added to `partial`.
  void (*backward)(const AttentionNormCall&, const AttentionNormSlopes&, int64_t chain, int64_t first,
                   int64_t last, const float* packed, float* partial, float* arena);
};

// Chunks of a chain's rows in place of sequences; code: (n, padded m).
struct FeedforwardNormKernels {
  void (*pack)(const FeedforwardNormCall&, int64_t chain, float* packed);
  void (*pad_code)(const FeedforwardNormCall&, float* code);
  void (*forward)(const FeedforwardNormCall&, int64_t chain, int64_t chunk, const float* packed,
                  const float* code, float* arena);
  void (*backward)(const FeedforwardNormCall&, const FeedforwardNormSlopes&, int64_t chain, int64_t first,
                   int64_t last, const float* packed, const float* code, float* partial, float* arena);
};

struct MaskedCrossEntropyKernels {
  void (*pack)(const MaskedCrossEntropyCall&, int64_t chain, float* packed);
  void (*forward)(const MaskedCrossEntropyCall&, int64_t chain, int64_t chunk, const float* packed,
                  double* loss, double* error, float* arena);
  void (*backward)(const MaskedCrossEntropyCall&, const MaskedCrossEntropySlopes&, int64_t chain,
                   int64_t first, int64_t last, const float* packed, float* partial, float* arena);
};

static inline LayerLayout<AttentionNormTensors> attention_norm_layout(int d) {
  LayerLayout<AttentionNormTensors> at{};
  at.tensors.query_key = encoder_place(at, d, d, true);
  at.tensors.value_output = encoder_place(at, d, d, true);
  at.tensors.gain = encoder_place(at, 1, d, false);
  at.tensors.bias = encoder_place(at, 1, d, false);
  return at;
}

static inline LayerLayout<FeedforwardNormTensors> feedforward_norm_layout(int d, int m) {
  LayerLayout<FeedforwardNormTensors> at{};
  at.tensors.weight1 = encoder_place(at, m, d, true);
  at.tensors.hidden_bias = encoder_place(at, 1, m, false);
  at.tensors.weight2 = encoder_place(at, d, m, true);
  at.tensors.out_bias = encoder_place(at, 1, d, false);
  at.tensors.gain = encoder_place(at, 1, d, false);
  at.tensors.bias = encoder_place(at, 1, d, false);
  return at;
}

static inline LayerLayout<HeadTensors> masked_cross_entropy_layout(int d, int tokens) {
  LayerLayout<HeadTensors> at{};
  at.tensors.output = encoder_place(at, tokens, d, true);
  at.tensors.output_bias = encoder_place(at, 1, tokens, false);
  return at;
}

struct LayerKernels {
  const AttentionNormKernels& attention_norm;
  const FeedforwardNormKernels& feedforward_norm;
  const MaskedCrossEntropyKernels& masked_cross_entropy;
};

#define THERMOSPHERE_LAYER_KERNELS(isa)                               \
  extern const AttentionNormKernels attention_norm_kernels_##isa;     \
  extern const FeedforwardNormKernels feedforward_norm_kernels_##isa; \
  extern const MaskedCrossEntropyKernels masked_cross_entropy_kernels_##isa;
THERMOSPHERE_LAYER_KERNELS(baseline)
THERMOSPHERE_LAYER_KERNELS(v3)
THERMOSPHERE_LAYER_KERNELS(v4)
#undef THERMOSPHERE_LAYER_KERNELS

}  // namespace thermosphere
