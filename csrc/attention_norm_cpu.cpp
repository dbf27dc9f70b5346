// The attention layer: pack each chain's weights, work through (chain × sequence); backward through (chain ×
// group of sequences), the groups' weight slopes added in their order.
#include <algorithm>

#include "attention_norm.h"
#include "isa.h"
#include "layer_tasks.h"

namespace thermosphere {
namespace {

// What a task takes of its arena: x, eight arrays of r rows, (n + 1) rows of attention, and (d + n) rows of
// work; no more than 16 pieces.
ptrdiff_t arena_floats(const AttentionNormCall& call) {
  const ptrdiff_t n = call.length, wide = encoder_padded(call.embedding);
  const ptrdiff_t r = encoder_padded(call.rows);
  return 2 * n * wide + 8 * r * wide + (call.embedding + 2 * n) * r + 3 * r + 1024 + 16 * arena_gap;
}

}  // namespace

void attention_norm(const AttentionNormCall& call, int threads) {
  const auto at = attention_norm_layout(call.embedding);
  const AttentionNormKernels& kernels = layer_kernels().attention_norm;
  const ptrdiff_t floats = arena_floats(call);
  float* packed = pack_chains(call, at, kernels, 0, threads);
  parallel_for(call.chains * call.batch, threads, [&](int64_t task) {
    const int64_t chain = task / call.batch;
    kernels.forward(call, chain, task % call.batch, packed + chain * packed_stride(at), thread_arena(floats));
  });
}

void attention_norm_backward(const AttentionNormCall& call, const AttentionNormSlopes& slopes, int threads) {
  const auto at = attention_norm_layout(call.embedding);
  const AttentionNormKernels& kernels = layer_kernels().attention_norm;
  const ptrdiff_t floats = arena_floats(call);
  const int64_t groups = std::clamp<int64_t>(call.batch, 1, layer_groups);
  float* packed = pack_chains(call, at, kernels, groups, threads);
  float* partials = packed + call.chains * packed_stride(at);
  for_groups(call.chains, call.batch, groups, at, partials, threads,
             [&](int64_t chain, int64_t first, int64_t last, float* partial) {
               kernels.backward(call, slopes, chain, first, last, packed + chain * packed_stride(at), partial,
                                thread_arena(floats));
             });
  const AttentionNormTensors& t = at.tensors;
  add_groups(call.chains, groups, at, partials, threads,
             {{&t.query_key, slopes.query_key},
              {&t.value_output, slopes.value_output},
              {&t.gain, slopes.gain},
              {&t.bias, slopes.bias}});
}

}  // namespace thermosphere
