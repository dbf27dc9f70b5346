// The whole-model call: pack each chain's weights, work through (chain × group of sequences), add the groups
// up. A batch is cut into the same groups whatever the threads, by the number of masked rows, and partial
// gradients are added in group order: the same bits for any thread count. With at least as many chains as
// threads a chain stays on one core.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "encoder_layout.h"
#include "isa.h"
#include "parallel.h"

namespace thermosphere {
namespace {

constexpr int groups_max = 4;
constexpr int64_t group_sequences =
    16;  // fewer than this a group and the extra partial gradient costs more than it saves

int64_t group_count(int64_t batch) { return std::clamp<int64_t>(batch / group_sequences, 1, groups_max); }

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// Scratch of this thread, kept between calls.
float* thread_arena(ptrdiff_t floats) {
  thread_local std::unique_ptr<float, Free> arena;
  thread_local ptrdiff_t size = 0;
  if (size < floats || (encoder_arena_gap > 0 && size > floats)) {  // watched: no more than was asked for
    size = 0;
    arena.reset(
        static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64))));
    if (!arena) throw std::bad_alloc();
    size = floats;
  }
  return arena.get();
}

// Position in the batch where group g of `groups` begins: equal shares of the masked rows.
std::vector<int64_t> group_bounds(const EncoderCall& call, int64_t chain, int64_t groups) {
  std::vector<int64_t> rows(static_cast<size_t>(call.batch) + 1, 0);
  for (int64_t b = 0; b < call.batch; ++b) {
    const int64_t at = chain * call.batch + b;
    const int64_t sequence = call.indices != nullptr ? call.indices[at] : b;
    const bool counts = call.example_weights == nullptr || call.example_weights[at] != 0.0f;
    rows[b + 1] = rows[b] + (counts ? call.set.first[sequence + 1] - call.set.first[sequence] : 0);
  }
  std::vector<int64_t> bounds;
  for (int64_t g = 0; g <= groups; ++g)
    bounds.push_back(std::lower_bound(rows.begin(), rows.end(), rows.back() * g / groups) - rows.begin());
  bounds.front() = 0;
  bounds.back() = call.batch;
  return bounds;
}

// out (flat) = Σ_g partial_g over an eighth of each tensor's rows.
void add_groups(const EncoderTensor& t, const float* partial, ptrdiff_t stride, int64_t groups,
                int64_t eighth, float* flat) {
  const int width = encoder_padded(t.columns);
  for (int64_t i = t.rows * eighth / 8; i < t.rows * (eighth + 1) / 8; ++i) {
    float* out = flat + t.flat + i * t.columns;
    const float* in = partial + t.gradient + i * width;
    for (int j = 0; j < t.columns; ++j) {
      float sum = in[j];
      for (int64_t g = 1; g < groups; ++g) sum += in[g * stride + j];
      out[j] = sum;
    }
  }
}

template <class Body>
void for_tensors(const EncoderLayout& at, const TransformerShape& s, const Body& body) {
  body(at.embedding);
  for (int l = 0; l < s.blocks; ++l) {
    const EncoderBlock& b = at.block[l];
    const EncoderTensor* all[] = {&b.query_key,   &b.value_output, &b.gain1,    &b.bias1, &b.weight1,
                                  &b.hidden_bias, &b.weight2,      &b.out_bias, &b.gain2, &b.bias2};
    for (const EncoderTensor* t : all) body(*t);
  }
  body(at.output);
  body(at.output_bias);
}

}  // namespace

ptrdiff_t encoder_arena_floats(const TransformerShape& s) {
  // An upper bound of what the kernel takes: pack_rows = 64 rows, pack_sequences = 8 of them.
  const ptrdiff_t wide = encoder_padded(s.embedding), high = encoder_padded(s.hidden) + 16, n = s.length;
  const ptrdiff_t rows = std::max<ptrdiff_t>(n, 64), columns = rows + 16 * 8;
  const ptrdiff_t state = 8 * wide + 2 * high + 4;  // a row of a BlockState
  const ptrdiff_t full = (s.blocks - 1) * (n * state + n * encoder_padded(s.length) + 16 * 16);
  const ptrdiff_t last = rows * state + n * columns + 16 * 16;
  const ptrdiff_t slopes = rows * (3 * wide + high + encoder_padded(s.tokens)) + 16 * 16;
  const ptrdiff_t tables = rows * 2 * (encoder_padded(s.length) + encoder_padded(s.tokens)) + 16 * 16;
  const ptrdiff_t gaps = encoder_arena_gap * (12 * s.blocks + 40);  // no more arrays than that
  return full + last + slopes + tables + 16 * n * wide + (s.embedding + n) * columns + 4 * rows + 1024 + gaps;
}

int64_t encoder_work_floats(const TransformerShape& shape, int64_t chains, bool gradient) {
  const EncoderLayout at = encoder_layout(shape);
  const ptrdiff_t packed = (at.packed_floats + 15) / 16 * 16;
  const ptrdiff_t partial = (at.gradient_floats + 15) / 16 * 16;
  return chains * (packed + (gradient ? groups_max * partial : 0));
}

void encoder_gradient(const EncoderCall& call, int threads) {
  const EncoderLayout at = encoder_layout(call.shape);
  const EncoderKernels& kernels = encoder_kernels();
  const ptrdiff_t packed_stride = (at.packed_floats + 15) / 16 * 16;
  const ptrdiff_t partial_stride = (at.gradient_floats + 15) / 16 * 16;
  const int64_t groups = group_count(call.batch);
  float* packed = call.work;
  float* partials = call.work + call.chains * packed_stride;
  const bool slope = call.gradient != nullptr;

  parallel_for(call.chains, threads, [&](int64_t c) {
    kernels.pack(at, call.shape, call.codes, call.weights + c * call.parameters, packed + c * packed_stride);
  });

  std::vector<std::vector<int64_t>> bounds;
  for (int64_t c = 0; c < call.chains; ++c) bounds.push_back(group_bounds(call, c, groups));
  std::vector<EncoderGroup> work(static_cast<size_t>(call.chains * groups));
  const ptrdiff_t arena_floats = encoder_arena_floats(call.shape);
  parallel_for(call.chains * groups, threads, [&](int64_t task) {
    const int64_t c = task / groups, g = task % groups;
    float* partial = slope ? partials + task * partial_stride : nullptr;
    if (slope) std::memset(partial, 0, sizeof(float) * static_cast<size_t>(partial_stride));
    const int64_t row = c * call.batch;
    EncoderGroup& group = work[static_cast<size_t>(task)];
    group = {.shape = &call.shape,
             .layout = &at,
             .set = &call.set,
             .codes = &call.codes,
             .packed = packed + c * packed_stride,
             .indices = call.indices != nullptr ? call.indices + row : nullptr,
             .weights = call.example_weights != nullptr ? call.example_weights + row : nullptr,
             .weight = 1.0f / static_cast<float>(call.batch),
             .first = bounds[static_cast<size_t>(c)][static_cast<size_t>(g)],
             .last = bounds[static_cast<size_t>(c)][static_cast<size_t>(g) + 1],
             .gradient = partial,
             .arena = thread_arena(arena_floats),
             .loss = 0.0,
             .error = 0.0};
    kernels.group(group);
  });

  for (int64_t c = 0; c < call.chains; ++c) {
    call.losses[c] = call.errors[c] = 0.0;
    for (int64_t g = 0; g < groups; ++g) {
      call.losses[c] += work[static_cast<size_t>(c * groups + g)].loss;
      call.errors[c] += work[static_cast<size_t>(c * groups + g)].error;
    }
  }
  if (!slope) return;
  parallel_for(call.chains, threads, [&](int64_t c) {
    kernels.finish(at, call.shape, call.codes, packed + c * packed_stride,
                   partials + c * groups * partial_stride, partial_stride, groups,
                   thread_arena(arena_floats));
  });
  parallel_for(call.chains * 8, threads, [&](int64_t task) {
    const int64_t c = task / 8;
    for_tensors(at, call.shape, [&](const EncoderTensor& t) {
      add_groups(t, partials + c * groups * partial_stride, partial_stride, groups, task % 8,
                 call.gradient + c * call.parameters);
    });
  });
}

}  // namespace thermosphere
