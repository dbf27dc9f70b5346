// Output and loss: pack each chain's weights, work through (chain × chunk of rows), add the chunks' losses in
// their order; backward through (chain × group of chunks), the groups' weight slopes added in theirs.
#include "isa.h"
#include "layer_tasks.h"
#include "masked_cross_entropy.h"

namespace thermosphere {
namespace {

// No more than 16 pieces.
ptrdiff_t arena_floats(const MaskedCrossEntropyCall& call) {
  return chunk_rows * (2 * encoder_padded(call.embedding) + encoder_padded(call.tokens)) + 1024 +
         16 * arena_gap;
}

}  // namespace

void masked_cross_entropy(const MaskedCrossEntropyCall& call, int threads) {
  const auto at = masked_cross_entropy_layout(call.embedding, call.tokens);
  const MaskedCrossEntropyKernels& kernels = layer_kernels().masked_cross_entropy;
  const ptrdiff_t floats = arena_floats(call);
  const int64_t chunks = chunk_count(call.rows), tasks = call.chains * chunks;
  float* packed = pack_chains(call, at, kernels, 0, threads, 4 * tasks);
  // Two float64 a chunk: its loss and its error.
  double* sums = reinterpret_cast<double*>(packed + call.chains * packed_stride(at));
  parallel_for(tasks, threads, [&](int64_t task) {
    const int64_t chain = task / chunks;
    kernels.forward(call, chain, task % chunks, packed + chain * packed_stride(at), sums + 2 * task,
                    sums + 2 * task + 1, thread_arena(floats));
  });
  for (int64_t c = 0; c < call.chains; ++c) {
    call.losses[c] = call.errors[c] = 0.0;
    for (int64_t task = c * chunks; task < (c + 1) * chunks; ++task) {
      call.losses[c] += sums[2 * task];
      call.errors[c] += sums[2 * task + 1];
    }
  }
}

void masked_cross_entropy_backward(const MaskedCrossEntropyCall& call, const MaskedCrossEntropySlopes& slopes,
                                   int threads) {
  const auto at = masked_cross_entropy_layout(call.embedding, call.tokens);
  const MaskedCrossEntropyKernels& kernels = layer_kernels().masked_cross_entropy;
  const ptrdiff_t floats = arena_floats(call);
  const int64_t chunks = chunk_count(call.rows), groups = groups_of_chunks(chunks);
  float* packed = pack_chains(call, at, kernels, groups, threads);
  float* partials = packed + call.chains * packed_stride(at);
  for_groups(call.chains, chunks, groups, at, partials, threads,
             [&](int64_t chain, int64_t first, int64_t last, float* partial) {
               kernels.backward(call, slopes, chain, first, last, packed + chain * packed_stride(at), partial,
                                thread_arena(floats));
             });
  add_groups(call.chains, groups, at, partials, threads,
             {{&at.tensors.output, slopes.output}, {&at.tensors.output_bias, slopes.output_bias}});
}

}  // namespace thermosphere
