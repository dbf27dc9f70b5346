// The attention layer, one sequence of one chain at a time. Compiled once per instruction set; sums run in
// the order written.
#include "attention_norm_cpu.h"
#include "isa_name.h"
#include "layer_kernels.h"
#include "padded_rows_cpu.h"

namespace thermosphere {
namespace {

void pack(const AttentionNormCall& call, int64_t chain, float* packed) {
  const int d = call.embedding;
  const AttentionNormTensors t = attention_norm_layout(d).tensors;
  const ptrdiff_t square = static_cast<ptrdiff_t>(d) * d;
  pack_tensor(t.query_key, call.query_key + chain * square, packed);
  pack_tensor(t.value_output, call.value_output + chain * square, packed);
  pack_tensor(t.gain, call.gain + chain * d, packed);
  pack_tensor(t.bias, call.bias + chain * d, packed);
}

// One sequence: its rows, its query rows, what is kept of it.
struct Sequence {
  const int64_t* positions;  // null: every row
  const float *x, *x_rows;   // n × wide, r × wide
  ptrdiff_t out;             // offset of its output rows, without padding
  AttentionNormState state;
};

Sequence sequence_of(const AttentionNormCall& call, int64_t chain, int64_t number, Arena& arena) {
  const int n = call.length, r = call.rows, d = call.embedding, wide = padded(d);
  const ptrdiff_t s = chain * call.batch + number, own = static_cast<ptrdiff_t>(r) * wide;
  const ptrdiff_t columns = (static_cast<ptrdiff_t>(n) + 1) * padded(r);
  Sequence q{};
  q.positions = call.positions != nullptr ? call.positions + s * r : nullptr;
  q.out = s * r * d;
  q.x = q.x_rows = padded_rows(arena, call.x + s * n * d, n, d);
  q.state = {kept(arena, call.queries, s * own, own), kept(arena, call.mixed, s * own, own),
             kept(arena, call.normal, s * own, own), kept(arena, call.attention, s * columns, columns),
             kept(arena, call.deviation, s * r, r)};
  if (q.positions == nullptr) return q;
  float* rows = arena.take(own);
  for (int i = 0; i < r; ++i)
    for (int k = 0; k < wide; k += lanes)
      store(rows + static_cast<ptrdiff_t>(i) * wide + k, load(q.x + q.positions[i] * wide + k));
  q.x_rows = rows;
  return q;
}

void forward(const AttentionNormCall& call, int64_t chain, int64_t number, const float* packed,
             float* memory) {
  const int n = call.length, r = call.rows, d = call.embedding;
  Arena arena{memory};
  float* mask = arena.take(padded(d));
  fill_mask(d, mask);
  const Sequence q = sequence_of(call, chain, number, arena);
  float* out = room_for_rows(arena, call.out + q.out, r, d);
  float* work = arena.take(static_cast<ptrdiff_t>(d) * padded(r));
  attention_norm(r, n, d, {packed, nullptr, mask}, attention_norm_layout(d).tensors, q.x_rows, q.x, q.state,
                 out, work);
  return_rows(out, r, d, call.out + q.out);
}

void backward(const AttentionNormCall& call, const AttentionNormSlopes& slopes, int64_t chain, int64_t first,
              int64_t last, const float* packed, float* partial, float* memory) {
  const int n = call.length, r = call.rows, d = call.embedding, wide = padded(d);
  const ptrdiff_t own = static_cast<ptrdiff_t>(r) * wide;
  const AttentionNormTensors t = attention_norm_layout(d).tensors;
  for (int64_t number = first; number < last; ++number) {
    Arena arena{memory};
    const Sequence q = sequence_of(call, chain, number, arena);
    float* slope = arena.take(own);
    float* mixed_slope = arena.take(own);
    float* query_slope = arena.take(own);
    float* work = arena.take((static_cast<ptrdiff_t>(d) + n) * padded(r));
    float* into = slopes.x + (chain * call.batch + number) * n * d;
    float* x_slope = room_for_rows(arena, into, n, d);
    pad_rows(r, d, slopes.out + q.out, d, slope);
    attention_norm_backward(r, n, d, {packed, partial, nullptr}, t, q.x_rows, q.x, q.state, slope, x_slope,
                            mixed_slope, query_slope, work);
    for (int i = 0; i < r; ++i) {
      float* at = x_slope + (q.positions != nullptr ? q.positions[i] : i) * wide;
      for (int k = 0; k < wide; k += lanes)
        store(at + k, load(at + k) + load(slope + static_cast<ptrdiff_t>(i) * wide + k));
    }
    return_rows(x_slope, n, d, into);
  }
}

}  // namespace

const AttentionNormKernels THERMOSPHERE_ISA_NAME(attention_norm_kernels_) = {pack, forward, backward};

}  // namespace thermosphere
