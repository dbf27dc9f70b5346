// Chain by chain, since the sums are large: pack the weights, work through groups of sequences, add the
// groups up in their order.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "encoder_layout.h"
#include "isa.h"
#include "layer_tasks.h"
#include "mean_attention.h"

namespace thermosphere {
namespace {

constexpr int64_t group_sequences = 16;  // fewer a group and adding the groups up would show

// mean (n × n) = Σ_g sumsᵀ / S.
void average(int n, const double* sums, ptrdiff_t stride, int64_t groups, int64_t sequences, double* mean) {
  const int width = encoder_padded(n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      double total = 0.0;
      for (int64_t g = 0; g < groups; ++g) total += sums[g * stride + static_cast<ptrdiff_t>(j) * width + i];
      mean[static_cast<ptrdiff_t>(i) * n + j] = total / static_cast<double>(sequences);
    }
}

}  // namespace

void mean_attention(const MeanAttentionCall& call, int threads) {
  const EncoderLayout at = encoder_layout(call.shape);
  if (call.parameters != at.parameters)
    throw std::invalid_argument("mean_attention: weights must be (C, " + std::to_string(at.parameters) +
                                "), got (" + std::to_string(call.chains) + ", " +
                                std::to_string(call.parameters) + ")");
  const EncoderKernels& kernels = encoder_kernels();
  const int64_t n = call.shape.length, blocks = call.shape.blocks;
  const int64_t groups = std::clamp<int64_t>(call.sequences / group_sequences, 1, layer_groups);
  const ptrdiff_t matrix = n * encoder_padded(call.shape.length), stride = blocks * matrix;
  const ptrdiff_t packed_floats = (at.packed_floats + 15) / 16 * 16;
  const ptrdiff_t arena_floats = encoder_arena_floats(call.shape);
  float* packed = call_arena(packed_floats + 2 * groups * stride);
  double* sums = reinterpret_cast<double*>(packed + packed_floats);
  for (int64_t c = 0; c < call.chains; ++c) {
    parallel_for(chain_pieces, threads, [&](int64_t piece) {
      kernels.pack(at, call.shape, call.codes, call.weights + c * call.parameters, packed, piece);
    });
    if (at.has_tables)
      parallel_for(chain_pieces, threads,
                   [&](int64_t piece) { kernels.tables(at, call.shape, call.codes, packed, piece); });
    std::memset(sums, 0, sizeof(double) * static_cast<size_t>(groups * stride));
    parallel_for(groups, threads, [&](int64_t g) {
      kernels.add_attention(at, call.shape, call.codes, packed, call.tokens, call.sequences * g / groups,
                            call.sequences * (g + 1) / groups, thread_arena(arena_floats), sums + g * stride);
    });
    parallel_for(blocks, threads, [&](int64_t l) {
      average(call.shape.length, sums + l * matrix, stride, groups, call.sequences,
              call.mean + (c * blocks + l) * n * n);
    });
  }
}

}  // namespace thermosphere
