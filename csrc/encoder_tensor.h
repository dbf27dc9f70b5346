// Where a weight tensor lies: in a flat vector, in the packed weights (what products read) and in a padded
// gradient (what products write). Packing, gradient and reduction go by these numbers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace thermosphere {

// One tensor (rows × columns) of the flat vector; a vector has one row.
struct EncoderTensor {
  int rows, columns;
  int row;             // floats from a row to the next in the flat vector
  ptrdiff_t flat;      // offset in the flat vector
  ptrdiff_t gradient;  // offset in the padded gradient, rows of padded(columns)
  ptrdiff_t forward;   // packed Wᵀ (columns × rows) in panels of 32, for x Wᵀ; vectors and the embedding:
                       // padded rows
  ptrdiff_t backward;  // packed W (rows × columns) in panels of 32, for dy W; -1 where none is needed
};

struct AttentionNormTensors {
  EncoderTensor query_key, value_output, gain, bias;
};

struct FeedforwardNormTensors {
  EncoderTensor weight1, hidden_bias, weight2, out_bias, gain, bias;
};

struct HeadTensors {
  EncoderTensor output, output_bias;
};

static inline int encoder_padded(int size) { return (size + 15) / 16 * 16; }
static inline ptrdiff_t encoder_panels(int depth, int columns) {
  return static_cast<ptrdiff_t>(depth) * ((columns + 31) / 32 * 32);
}

// Layout: parameters, packed_floats and gradient_floats so far.
template <class Layout>
static inline EncoderTensor encoder_place(Layout& at, int rows, int columns, bool product) {
  EncoderTensor t{rows, columns, columns, at.parameters, at.gradient_floats, at.packed_floats, -1};
  const ptrdiff_t padded = static_cast<ptrdiff_t>(rows) * encoder_padded(columns);
  at.parameters += static_cast<ptrdiff_t>(rows) * columns;
  at.gradient_floats += padded;
  if (product) {
    at.packed_floats += encoder_panels(columns, rows);
    t.backward = at.packed_floats;
    at.packed_floats += encoder_panels(rows, columns);
  } else {
    at.packed_floats += padded;
  }
  return t;
}

// The tensors of one layer, for a call that does nothing but that layer.
template <class Tensors>
struct LayerLayout {
  ptrdiff_t parameters, packed_floats, gradient_floats;
  Tensors tensors;
};

}  // namespace thermosphere
