// The whole-model call: pack each chain's weights, work through (chain × group of sequences), add the groups
// up. A batch is cut into the same groups whatever the threads, by the number of masked rows, and partial
// gradients are added in group order: the same bits for any thread count. With at least as many chains as
// threads a chain stays on one core.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "arena.h"
#include "encoder_layout.h"
#include "isa.h"
#include "parallel.h"

namespace thermosphere {
namespace {

constexpr int groups_max = 4;
constexpr int64_t group_sequences =
    16;  // fewer than this a group and the extra partial gradient costs more than it saves

int64_t group_count(int64_t batch) { return std::clamp<int64_t>(batch / group_sequences, 1, groups_max); }

// What a call needs besides the arena, kept by the calling thread: nothing is allocated in steady state.
struct CallScratch {
  std::vector<int64_t> rows;    // masked rows before each position of the batch
  std::vector<int64_t> bounds;  // (C, groups + 1)
  std::vector<EncoderGroup> work;
};

// bounds: position in the batch where each group begins, by equal shares of the masked rows.
void group_bounds(const EncoderCall& call, int64_t chain, int64_t groups, std::vector<int64_t>& rows,
                  int64_t* bounds) {
  rows.assign(static_cast<size_t>(call.batch) + 1, 0);
  for (int64_t b = 0; b < call.batch; ++b) {
    const int64_t at = chain * call.batch + b;
    const int64_t sequence = call.indices != nullptr ? call.indices[at] : b;
    const bool counts = call.example_weights == nullptr || call.example_weights[at] != 0.0f;
    rows[b + 1] = rows[b] + (counts ? call.set.first[sequence + 1] - call.set.first[sequence] : 0);
  }
  for (int64_t g = 0; g <= groups; ++g) {
    const int64_t share = rows.back() * g / groups;
    auto at = std::lower_bound(rows.begin(), rows.end(), share);
    if (at != rows.begin() && share - at[-1] < *at - share) --at;  // the nearer of the two
    bounds[g] = at - rows.begin();
  }
  bounds[0] = 0;
  bounds[groups] = call.batch;
}

}  // namespace

// Upper bounds of what the kernels take.
static ptrdiff_t transformer_floats(const EncoderShape& s) {
  const ptrdiff_t wide = encoder_padded(s.embedding), high = encoder_padded(s.hidden) + 16, n = s.length;
  const ptrdiff_t rows = encoder_pack_rows(s), columns = rows + 16 * encoder_pack_sequences(s);
  const ptrdiff_t state = 8 * wide + 2 * high + 4;  // a row of a BlockState
  const ptrdiff_t full = (s.blocks - 1) * (n * state + (n + 1) * encoder_padded(s.length) + 16 * 16);
  const ptrdiff_t last = rows * state + (n + 1) * columns + 16 * 16;
  const ptrdiff_t slopes = rows * (3 * wide + high + encoder_padded(s.tokens)) + 16 * 16;
  const ptrdiff_t tables = rows * 2 * (encoder_padded(s.length) + encoder_padded(s.tokens)) + 16 * 16;
  return full + last + slopes + tables + 16 * n * wide + (s.embedding + n) * columns + 4 * rows + 1024;
}

static ptrdiff_t feedforward_floats(const EncoderShape& s) {
  const ptrdiff_t wide = encoder_padded(s.embedding), high = encoder_padded(s.hidden) + 16;
  const ptrdiff_t classes = encoder_padded(s.tokens), rows = encoder_pack_rows(s);
  const ptrdiff_t state = 5 * high + classes + 4;  // a row's activations, slope, logits, and what it is
  const ptrdiff_t pooled = 2 * encoder_padded(s.tokens + s.length) + 3 * wide + 2 * high + 2;
  return rows * state + encoder_sequences_max * pooled + high + 1024;
}

// What dropout takes more: factors, and in the feed-forward network X̂, 1/σ, U and masked rows.
static ptrdiff_t dropped_floats(const EncoderShape& s) {
  if (s.network != EncoderNetwork::feedforward) return encoder_dropout_floats(s);
  const ptrdiff_t wide = encoder_padded(s.embedding), high = encoder_padded(s.hidden) + 16, n = s.length;
  const ptrdiff_t sequence = dropout_floats(n * wide) + n * (wide + 1) + 16 + 256;
  return dropout_sequences_max * sequence + n * wide + encoder_pack_rows(s) * (2 * wide + 2 * high);
}

ptrdiff_t encoder_arena_floats(const EncoderShape& s, bool dropout) {
  const ptrdiff_t gaps = arena_gap * (14 * s.blocks + 56);  // no more arrays than that
  return gaps + (dropout ? dropped_floats(s) : 0) +
         (s.network == EncoderNetwork::feedforward ? feedforward_floats(s) : transformer_floats(s));
}

int64_t encoder_work_floats(const EncoderShape& shape, int64_t chains, bool gradient) {
  const EncoderLayout at = encoder_layout(shape);
  const ptrdiff_t packed = (at.packed_floats + 15) / 16 * 16;
  const ptrdiff_t partial = (at.gradient_floats + 15) / 16 * 16;
  return chains * (packed + (gradient ? groups_max * partial : 0));
}

void check_batch(const EncoderCall& call) {
  const int64_t counters = encoder_dropout_counters(call.shape);
  if (call.dropout.threshold > 0 && call.batch > (int64_t{1} << 32) / counters)
    throw std::invalid_argument("encoder_gradient: batch must be at most " +
                                std::to_string((int64_t{1} << 32) / counters) + " with dropout, got " +
                                std::to_string(call.batch));
  if (call.indices == nullptr) return;
  for (int64_t i = 0; i < call.chains * call.batch; ++i)
    if (call.indices[i] < 0 || call.indices[i] >= call.set.count)
      throw std::invalid_argument("encoder_gradient: batch.indices must be in [0, " +
                                  std::to_string(call.set.count) + "), got " +
                                  std::to_string(call.indices[i]));
}

void encoder_gradient(const EncoderCall& call, int threads) {
  const bool dropout = call.dropout.threshold > 0;
  const EncoderLayout at = encoder_layout(call.shape, dropout);
  const EncoderKernels& kernels = encoder_kernels();
  const ptrdiff_t packed_stride = (at.packed_floats + 15) / 16 * 16;
  const ptrdiff_t partial_stride = (at.gradient_floats + 15) / 16 * 16;
  const int64_t groups = group_count(call.batch);
  float* packed = call.work;
  float* partials = call.work + call.chains * packed_stride;
  const bool slope = call.gradient != nullptr;

  const int64_t pieces = call.chains * chain_pieces;
  parallel_for(pieces, threads, [&](int64_t task) {
    const int64_t c = task / chain_pieces;
    kernels.pack(at, call.shape, call.codes, call.weights + c * call.parameters, packed + c * packed_stride,
                 task % chain_pieces);
  });
  if (at.has_tables)
    parallel_for(pieces, threads, [&](int64_t task) {
      kernels.tables(at, call.shape, call.codes, packed + task / chain_pieces * packed_stride,
                     task % chain_pieces);
    });

  thread_local CallScratch own;
  CallScratch& scratch = own;  // of this thread, also in the bodies that others run
  scratch.bounds.resize(static_cast<size_t>(call.chains * (groups + 1)));
  scratch.work.resize(static_cast<size_t>(call.chains * groups));
  EncoderGroup* work = scratch.work.data();
  for (int64_t c = 0; c < call.chains; ++c)
    group_bounds(call, c, groups, scratch.rows, scratch.bounds.data() + c * (groups + 1));
  const ptrdiff_t arena_floats = encoder_arena_floats(call.shape, dropout);
  parallel_for(call.chains * groups, threads, [&](int64_t task) {
    const int64_t c = task / groups, g = task % groups;
    float* partial = slope ? partials + task * partial_stride : nullptr;
    if (slope) std::memset(partial, 0, sizeof(float) * static_cast<size_t>(partial_stride));
    const int64_t row = c * call.batch;
    const int64_t* bounds = scratch.bounds.data() + c * (groups + 1) + g;
    EncoderGroup& group = work[task];
    group = {.shape = &call.shape,
             .layout = &at,
             .set = &call.set,
             .codes = &call.codes,
             .packed = packed + c * packed_stride,
             .indices = call.indices != nullptr ? call.indices + row : nullptr,
             .weights = call.example_weights != nullptr ? call.example_weights + row : nullptr,
             .weight = 1.0f / static_cast<float>(call.batch),
             .first = bounds[0],
             .last = bounds[1],
             .gradient = partial,
             .dropout = call.dropout,
             .chain = static_cast<uint32_t>(c),
             .arena = thread_arena(arena_floats),
             .loss = 0.0,
             .error = 0.0};
    kernels.group(group);
  });

  for (int64_t c = 0; c < call.chains; ++c) {
    call.losses[c] = call.errors[c] = 0.0;
    for (int64_t g = 0; g < groups; ++g) {
      call.losses[c] += work[c * groups + g].loss;
      call.errors[c] += work[c * groups + g].error;
    }
  }
  if (!slope) return;
  if (at.has_tables)
    parallel_for(pieces, threads, [&](int64_t task) {
      const int64_t c = task / chain_pieces;
      kernels.table_slopes(at, call.shape, call.codes, packed + c * packed_stride,
                           partials + c * groups * partial_stride, partial_stride, groups,
                           task % chain_pieces);
    });
  parallel_for(pieces, threads, [&](int64_t task) {
    const int64_t c = task / chain_pieces;
    kernels.finish(at, call.shape, packed + c * packed_stride, partials + c * groups * partial_stride,
                   partial_stride, groups, call.gradient + c * call.parameters, task % chain_pieces);
  });
}

}  // namespace thermosphere
