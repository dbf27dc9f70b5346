// The feed-forward layer: pack each chain's weights, work through (chain × chunk of rows); backward through
// (chain × group of chunks), the groups' weight slopes added in their order.
#include "feedforward_norm.h"
#include "isa.h"
#include "layer_tasks.h"

namespace thermosphere {
namespace {

// No more than 16 pieces.
ptrdiff_t arena_floats(const FeedforwardNormCall& call) {
  return chunk_rows * (4 * encoder_padded(call.embedding) + 3 * (encoder_padded(call.hidden) + 16) + 1) +
         1024 + 16 * arena_gap;
}

ptrdiff_t code_floats(const FeedforwardNormCall& call) {
  return static_cast<ptrdiff_t>(call.length) * encoder_padded(call.hidden);
}

// The padded code lies after the chains' packed weights and partial gradients.
template <class Layout>
float* code_after(const FeedforwardNormCall& call, const Layout& at, float* packed, int64_t groups) {
  return packed + call.chains * (packed_stride(at) + groups * partial_stride(at));
}

}  // namespace

void feedforward_norm(const FeedforwardNormCall& call, int threads) {
  const auto at = feedforward_norm_layout(call.embedding, call.hidden);
  const FeedforwardNormKernels& kernels = layer_kernels().feedforward_norm;
  const ptrdiff_t floats = arena_floats(call);
  float* packed = pack_chains(call, at, kernels, 0, threads, code_floats(call));
  float* code = code_after(call, at, packed, 0);
  kernels.pad_code(call, code);
  const int64_t chunks = chunk_count(call.rows);
  parallel_for(call.chains * chunks, threads, [&](int64_t task) {
    const int64_t chain = task / chunks;
    kernels.forward(call, chain, task % chunks, packed + chain * packed_stride(at), code,
                    thread_arena(floats));
  });
}

void feedforward_norm_backward(const FeedforwardNormCall& call, const FeedforwardNormSlopes& slopes,
                               int threads) {
  const auto at = feedforward_norm_layout(call.embedding, call.hidden);
  const FeedforwardNormKernels& kernels = layer_kernels().feedforward_norm;
  const ptrdiff_t floats = arena_floats(call);
  const int64_t chunks = chunk_count(call.rows), groups = groups_of_chunks(chunks);
  float* packed = pack_chains(call, at, kernels, groups, threads, code_floats(call));
  float* partials = packed + call.chains * packed_stride(at);
  float* code = code_after(call, at, packed, groups);
  kernels.pad_code(call, code);
  for_groups(call.chains, chunks, groups, at, partials, threads,
             [&](int64_t chain, int64_t first, int64_t last, float* partial) {
               kernels.backward(call, slopes, chain, first, last, packed + chain * packed_stride(at), code,
                                partial, thread_arena(floats));
             });
  const FeedforwardNormTensors& t = at.tensors;
  add_groups(call.chains, groups, at, partials, threads,
             {{&t.weight1, slopes.weight1},
              {&t.hidden_bias, slopes.hidden_bias},
              {&t.weight2, slopes.weight2},
              {&t.out_bias, slopes.out_bias},
              {&t.gain, slopes.gain},
              {&t.bias, slopes.bias}});
}

}  // namespace thermosphere
