// Unpack plain arguments and call, for the layers and the mean attention; see bindings.cpp. Sizes and
// addresses come as arrays in the order of the call's struct.
#include "bindings_layers.h"

#include <pybind11/stl.h>

#include "attention_norm.h"
#include "feedforward_norm.h"
#include "masked_cross_entropy.h"
#include "mean_attention.h"

namespace py = pybind11;
namespace ts = thermosphere;

namespace {

template <size_t count>
using Addresses = std::array<uintptr_t, count>;

float* floats(uintptr_t value) { return reinterpret_cast<float*>(value); }
const int64_t* integers(uintptr_t value) { return reinterpret_cast<const int64_t*>(value); }
double* doubles(uintptr_t value) { return reinterpret_cast<double*>(value); }

ts::AttentionNormCall attention_norm_call(const std::array<int64_t, 5>& sizes, const Addresses<6>& inputs,
                                          uintptr_t out, const Addresses<5>& state) {
  return {.chains = sizes[0],
          .batch = sizes[1],
          .length = static_cast<int>(sizes[2]),
          .rows = static_cast<int>(sizes[3]),
          .embedding = static_cast<int>(sizes[4]),
          .x = floats(inputs[0]),
          .positions = integers(inputs[1]),
          .query_key = floats(inputs[2]),
          .value_output = floats(inputs[3]),
          .gain = floats(inputs[4]),
          .bias = floats(inputs[5]),
          .out = floats(out),
          .queries = floats(state[0]),
          .mixed = floats(state[1]),
          .normal = floats(state[2]),
          .attention = floats(state[3]),
          .deviation = floats(state[4])};
}

ts::FeedforwardNormCall feedforward_norm_call(const std::array<int64_t, 6>& sizes, const Addresses<9>& inputs,
                                              uintptr_t out, const Addresses<3>& state) {
  return {.chains = sizes[0],
          .rows = sizes[1],
          .length = static_cast<int>(sizes[2]),
          .period = static_cast<int>(sizes[3]),
          .embedding = static_cast<int>(sizes[4]),
          .hidden = static_cast<int>(sizes[5]),
          .y = floats(inputs[0]),
          .positions = integers(inputs[1]),
          .weight1 = floats(inputs[2]),
          .hidden_bias = floats(inputs[3]),
          .weight2 = floats(inputs[4]),
          .out_bias = floats(inputs[5]),
          .gain = floats(inputs[6]),
          .bias = floats(inputs[7]),
          .code = floats(inputs[8]),
          .out = floats(out),
          .active = floats(state[0]),
          .normal = floats(state[1]),
          .deviation = floats(state[2])};
}

ts::MaskedCrossEntropyCall masked_cross_entropy_call(const std::array<int64_t, 4>& sizes,
                                                     const Addresses<5>& inputs, uintptr_t losses,
                                                     uintptr_t errors, uintptr_t logit_slope) {
  return {.chains = sizes[0],
          .rows = sizes[1],
          .embedding = static_cast<int>(sizes[2]),
          .tokens = static_cast<int>(sizes[3]),
          .x = floats(inputs[0]),
          .output = floats(inputs[1]),
          .output_bias = floats(inputs[2]),
          .targets = integers(inputs[3]),
          .weights = floats(inputs[4]),
          .losses = doubles(losses),
          .errors = doubles(errors),
          .logit_slope = floats(logit_slope)};
}

}  // namespace

void bind_layers(py::module_& m) {
  m.def(
      "attention_norm",
      [](std::array<int64_t, 5> sizes, Addresses<6> inputs, uintptr_t out, Addresses<5> state, int threads) {
        const py::gil_scoped_release release;
        ts::attention_norm(attention_norm_call(sizes, inputs, out, state), threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("out"), py::arg("state"),
      py::arg("threads"));
  m.def(
      "attention_norm_backward",
      [](std::array<int64_t, 5> sizes, Addresses<6> inputs, Addresses<5> state, uintptr_t out_slope,
         Addresses<5> slopes, int threads) {
        const py::gil_scoped_release release;
        ts::attention_norm_backward(attention_norm_call(sizes, inputs, 0, state),
                                    {.out = floats(out_slope),
                                     .x = floats(slopes[0]),
                                     .query_key = floats(slopes[1]),
                                     .value_output = floats(slopes[2]),
                                     .gain = floats(slopes[3]),
                                     .bias = floats(slopes[4])},
                                    threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("state"), py::arg("out_slope"),
      py::arg("slopes"), py::arg("threads"));

  m.def(
      "feedforward_norm",
      [](std::array<int64_t, 6> sizes, Addresses<9> inputs, uintptr_t out, Addresses<3> state, int threads) {
        const py::gil_scoped_release release;
        ts::feedforward_norm(feedforward_norm_call(sizes, inputs, out, state), threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("out"), py::arg("state"),
      py::arg("threads"));
  m.def(
      "feedforward_norm_backward",
      [](std::array<int64_t, 6> sizes, Addresses<9> inputs, Addresses<3> state, uintptr_t out_slope,
         Addresses<7> slopes, int threads) {
        const py::gil_scoped_release release;
        ts::feedforward_norm_backward(feedforward_norm_call(sizes, inputs, 0, state),
                                      {.out = floats(out_slope),
                                       .y = floats(slopes[0]),
                                       .weight1 = floats(slopes[1]),
                                       .hidden_bias = floats(slopes[2]),
                                       .weight2 = floats(slopes[3]),
                                       .out_bias = floats(slopes[4]),
                                       .gain = floats(slopes[5]),
                                       .bias = floats(slopes[6])},
                                      threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("state"), py::arg("out_slope"),
      py::arg("slopes"), py::arg("threads"));

  m.def(
      "masked_cross_entropy",
      [](std::array<int64_t, 4> sizes, Addresses<5> inputs, uintptr_t losses, uintptr_t errors,
         uintptr_t logit_slope, int threads) {
        const py::gil_scoped_release release;
        ts::masked_cross_entropy(masked_cross_entropy_call(sizes, inputs, losses, errors, logit_slope),
                                 threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("losses"), py::arg("errors"),
      py::arg("logit_slope"), py::arg("threads"));
  m.def(
      "masked_cross_entropy_backward",
      [](std::array<int64_t, 4> sizes, Addresses<5> inputs, uintptr_t logit_slope, uintptr_t loss_slopes,
         Addresses<3> slopes, int threads) {
        const py::gil_scoped_release release;
        ts::masked_cross_entropy_backward(masked_cross_entropy_call(sizes, inputs, 0, 0, logit_slope),
                                          {.losses = doubles(loss_slopes),
                                           .x = floats(slopes[0]),
                                           .output = floats(slopes[1]),
                                           .output_bias = floats(slopes[2])},
                                          threads);
      },
      py::kw_only(), py::arg("sizes"), py::arg("inputs"), py::arg("logit_slope"), py::arg("loss_slopes"),
      py::arg("slopes"), py::arg("threads"));

  m.def(
      "mean_attention",
      [](std::array<int, 5> shape, uintptr_t code_embedding, uintptr_t code_hidden, int64_t chains,
         int64_t parameters, int64_t sequences, uintptr_t weights, uintptr_t tokens, uintptr_t mean,
         int threads) {
        const py::gil_scoped_release release;
        ts::mean_attention(
            {.shape = {ts::EncoderNetwork::transformer, shape[0], shape[1], shape[2], shape[3], shape[4]},
             .codes = {.embedding = floats(code_embedding), .hidden = floats(code_hidden)},
             .chains = chains,
             .parameters = parameters,
             .sequences = sequences,
             .weights = floats(weights),
             .tokens = reinterpret_cast<const uint8_t*>(tokens),
             .mean = doubles(mean)},
            threads);
      },
      py::kw_only(), py::arg("shape"), py::arg("code_embedding"), py::arg("code_hidden"), py::arg("chains"),
      py::arg("parameters"), py::arg("sequences"), py::arg("weights"), py::arg("tokens"), py::arg("mean"),
      py::arg("threads"));
}
