// Output and loss, a chunk of one chain's rows at a time. Compiled once per instruction set; sums run in the
// order written.
#include "isa_name.h"
#include "layer_kernels.h"
#include "masked_cross_entropy_cpu.h"
#include "padded_rows_cpu.h"

namespace thermosphere {
namespace {

void pack(const MaskedCrossEntropyCall& call, int64_t chain, float* packed) {
  const int d = call.embedding, tokens = call.tokens;
  const HeadTensors t = masked_cross_entropy_layout(d, tokens).tensors;
  pack_tensor(t.output, call.output + chain * static_cast<ptrdiff_t>(tokens) * d, packed);
  pack_tensor(t.output_bias, call.output_bias + chain * tokens, packed);
}

int rows_of_chunk(const MaskedCrossEntropyCall& call, int64_t number) {
  const int64_t left = call.rows - number * chunk_rows;
  return static_cast<int>(left < chunk_rows ? left : chunk_rows);
}

void forward(const MaskedCrossEntropyCall& call, int64_t chain, int64_t number, const float* packed,
             double* loss, double* error, float* memory) {
  const int d = call.embedding, tokens = call.tokens, classes = padded(tokens);
  const int rows = rows_of_chunk(call, number);
  const ptrdiff_t first = chain * call.rows + number * chunk_rows;
  Arena arena{memory};
  int32_t targets[chunk_rows];
  for (int i = 0; i < rows; ++i) targets[i] = static_cast<int32_t>(call.targets[first + i]);
  const float* x = padded_rows(arena, call.x + first * d, rows, d);
  float* logits = kept(arena, call.logit_slope, first * classes, static_cast<ptrdiff_t>(rows) * classes);
  const RowLoss total = output_cross_entropy(rows, tokens, {packed, nullptr, nullptr},
                                             masked_cross_entropy_layout(d, tokens).tensors, x, padded(d),
                                             targets, call.weights + first, logits);
  *loss = total.loss;
  *error = total.error;
}

void backward(const MaskedCrossEntropyCall& call, const MaskedCrossEntropySlopes& slopes, int64_t chain,
              int64_t first_chunk, int64_t last_chunk, const float* packed, float* partial, float* memory) {
  const int d = call.embedding, tokens = call.tokens, classes = padded(tokens);
  const HeadTensors t = masked_cross_entropy_layout(d, tokens).tensors;
  const float scale = static_cast<float>(slopes.losses[chain]);
  for (int64_t number = first_chunk; number < last_chunk; ++number) {
    const int rows = rows_of_chunk(call, number);
    const ptrdiff_t first = chain * call.rows + number * chunk_rows;
    Arena arena{memory};
    const float* x = padded_rows(arena, call.x + first * d, rows, d);
    float* slope = arena.take(static_cast<ptrdiff_t>(rows) * classes);
    for (int i = 0; i < rows * classes; i += lanes)
      store(slope + i, load(call.logit_slope + first * classes + i) * scale);
    float* into = slopes.x + first * d;
    float* x_slope = room_for_rows(arena, into, rows, d);
    output_backward(rows, tokens, {packed, partial, nullptr}, t, x, padded(d), slope, x_slope);
    return_rows(x_slope, rows, d, into);
  }
}

}  // namespace

const MaskedCrossEntropyKernels THERMOSPHERE_ISA_NAME(masked_cross_entropy_kernels_) = {pack, forward,
                                                                                        backward};

}  // namespace thermosphere
