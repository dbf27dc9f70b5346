// The feed-forward layer, a chunk of one chain's rows at a time. Compiled once per instruction set; sums run
// in the order written.
#include "feedforward_norm_cpu.h"
#include "isa_name.h"
#include "layer_kernels.h"
#include "padded_rows_cpu.h"

namespace thermosphere {
namespace {

void pack(const FeedforwardNormCall& call, int64_t chain, float* packed) {
  const int d = call.embedding, m = call.hidden;
  const FeedforwardNormTensors t = feedforward_norm_layout(d, m).tensors;
  const ptrdiff_t area = static_cast<ptrdiff_t>(m) * d;
  pack_tensor(t.weight1, call.weight1 + chain * area, packed);
  pack_tensor(t.hidden_bias, call.hidden_bias + chain * m, packed);
  pack_tensor(t.weight2, call.weight2 + chain * area, packed);
  pack_tensor(t.out_bias, call.out_bias + chain * d, packed);
  pack_tensor(t.gain, call.gain + chain * d, packed);
  pack_tensor(t.bias, call.bias + chain * d, packed);
}

void pad_code(const FeedforwardNormCall& call, float* code) {
  pad_rows(call.length, call.hidden, call.code, call.hidden, code);
}

// A chunk: its rows and their sites, and what is kept of them.
struct Chunk {
  int rows;
  ptrdiff_t first;  // row among all chains'
  int site[chunk_rows];
  const float* y;  // rows × padded(d)
  FeedforwardNormState state;
};

Chunk chunk_of(const FeedforwardNormCall& call, int64_t chain, int64_t number, Arena& arena) {
  const int d = call.embedding, m = call.hidden;
  const int64_t first = number * chunk_rows;
  Chunk c;
  c.rows = static_cast<int>(call.rows - first < chunk_rows ? call.rows - first : chunk_rows);
  c.first = chain * call.rows + first;
  for (int i = 0; i < c.rows; ++i)
    c.site[i] =
        static_cast<int>(call.positions != nullptr ? call.positions[c.first + i] : (first + i) % call.period);
  c.y = padded_rows(arena, call.y + c.first * d, c.rows, d);
  const ptrdiff_t wide = padded(d), high = padded(m);
  const bool keep = call.active != nullptr;
  c.state = {kept(arena, call.active, c.first * high, c.rows * static_cast<ptrdiff_t>(hidden_row(m))),
             keep ? high : hidden_row(m), arena.take(c.rows * static_cast<ptrdiff_t>(hidden_row(m))),
             kept(arena, call.normal, c.first * wide, c.rows * wide),
             kept(arena, call.deviation, c.first, c.rows)};
  return c;
}

void forward(const FeedforwardNormCall& call, int64_t chain, int64_t number, const float* packed,
             const float* code, float* memory) {
  const int d = call.embedding, m = call.hidden;
  Arena arena{memory};
  float* mask = arena.take(padded(d));
  fill_mask(d, mask);
  const Chunk c = chunk_of(call, chain, number, arena);
  float* into = call.out + c.first * d;
  float* out = room_for_rows(arena, into, c.rows, d);
  feedforward_norm(c.rows, d, m, {packed, nullptr, mask}, feedforward_norm_layout(d, m).tensors, c.y, c.site,
                   code, c.state, out);
  return_rows(out, c.rows, d, into);
}

void backward(const FeedforwardNormCall& call, const FeedforwardNormSlopes& slopes, int64_t chain,
              int64_t first, int64_t last, const float* packed, const float* code, float* partial,
              float* memory) {
  const int d = call.embedding, m = call.hidden, high = hidden_row(m);
  const FeedforwardNormTensors t = feedforward_norm_layout(d, m).tensors;
  for (int64_t number = first; number < last; ++number) {
    Arena arena{memory};
    const Chunk c = chunk_of(call, chain, number, arena);
    for (int i = 0; i < c.rows; ++i)
      add_code(c.state.active + i * c.state.active_row, code + static_cast<ptrdiff_t>(c.site[i]) * padded(m),
               padded(m), c.state.hidden + static_cast<ptrdiff_t>(i) * high);
    float* into = slopes.y + c.first * d;
    float* slope = room_for_rows(arena, into, c.rows, d);
    pad_rows(c.rows, d, slopes.out + c.first * d, d, slope);
    float* work = arena.take(c.rows * static_cast<ptrdiff_t>(high));
    feedforward_norm_backward(c.rows, d, m, {packed, partial, nullptr}, t, c.y, c.state, slope, work);
    return_rows(slope, c.rows, d, into);
  }
}

}  // namespace

const FeedforwardNormKernels THERMOSPHERE_ISA_NAME(feedforward_norm_kernels_) = {pack, pad_code, forward,
                                                                                 backward};

}  // namespace thermosphere
