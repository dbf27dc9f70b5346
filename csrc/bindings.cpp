// Unpack plain arguments and call; nothing else. Arrays come as addresses: shapes, types and contiguity are
// checked in Python, in the op that owns them (python/thermosphere/ops).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings_cuda.h"
#include "bindings_layers.h"
#include "encoder_gradient.h"
#include "isa.h"
#include "langevin_burst.h"
#include "langevin_step.h"
#include "minibatch.h"
#include "parallel.h"
#include "philox.h"
#if defined(THERMOSPHERE_CUDA_VERSION)
#include "cuda_device.h"
#endif

namespace py = pybind11;
namespace ts = thermosphere;

namespace {

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

ts::EncoderShape encoder_shape(int network, const std::array<int, 5>& sizes) {
  return {static_cast<ts::EncoderNetwork>(network), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

ts::MoveCounter counter(uintptr_t moves, uintptr_t failed_move, bool advance) {
  return {address<uint64_t>(moves), address<int64_t>(failed_move), advance};
}

// A gradient's call, as encoder_gradient and langevin_burst are handed it.
ts::EncoderCall encoder_call(int network, const std::array<int, 5>& sizes, int64_t sequences,
                             uintptr_t tokens, uintptr_t first, uintptr_t site, uintptr_t target,
                             uintptr_t code_embedding, uintptr_t code_hidden, int64_t chains,
                             int64_t parameters, int64_t batch, uintptr_t weights, uintptr_t indices,
                             uintptr_t example_weights, uintptr_t gradient, uintptr_t losses,
                             uintptr_t errors, uintptr_t work, uint32_t dropout_threshold = 0,
                             uint64_t dropout_seed = 0) {
  return {.shape = encoder_shape(network, sizes),
          .set = {.count = sequences,
                  .tokens = address<const uint8_t>(tokens),
                  .first = address<const int64_t>(first),
                  .site = address<const int32_t>(site),
                  .target = address<const int32_t>(target)},
          .codes = {.embedding = address<const float>(code_embedding),
                    .hidden = address<const float>(code_hidden)},
          .chains = chains,
          .parameters = parameters,
          .batch = batch,
          .weights = address<const float>(weights),
          .indices = address<const int64_t>(indices),
          .example_weights = address<const float>(example_weights),
          .gradient = address<float>(gradient),
          .losses = address<double>(losses),
          .errors = address<double>(errors),
          .work = address<float>(work),
          .dropout = {.threshold = dropout_threshold, .seed = dropout_seed}};
}

py::dict build_info() {
  py::dict info;
  info["version"] = THERMOSPHERE_VERSION;
  info["compiler"] = THERMOSPHERE_COMPILER;
#if defined(THERMOSPHERE_CUDA_VERSION)
  info["cuda"] = THERMOSPHERE_CUDA_VERSION;
  const ts::CudaDevices devices = ts::cuda_devices();
  info["cuda_devices"] = devices.count;
  info["cuda_driver"] = devices.driver_version;
#else
  info["cuda"] = py::none();
  info["cuda_devices"] = 0;
  info["cuda_driver"] = 0;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of thermosphere. Private: use thermosphere.ops.";
  m.def("build_info", &build_info);
  m.def("isa_available", &ts::isa_available);
  m.def("isa_chosen", &ts::isa_chosen);
  m.def("isa_choose", &ts::isa_choose);
  m.def("parallel_backend", &ts::parallel_backend);
  m.attr("segment_elements") = ts::segment_elements;
  m.attr("encoder_size_limits") =
      py::make_tuple(ts::encoder_blocks_max, ts::encoder_embedding_max, ts::encoder_hidden_max,
                     ts::encoder_length_max, ts::encoder_tokens_max);
  m.attr("encoder_networks") = py::dict(py::arg("transformer") = int(ts::EncoderNetwork::transformer),
                                        py::arg("feedforward") = int(ts::EncoderNetwork::feedforward));

  m.def("philox4x32", [](std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
    const ts::Words words = ts::philox4x32(c[0], c[1], c[2], c[3], k[0], k[1]);
    return std::array<uint32_t, 4>{words.word[0], words.word[1], words.word[2], words.word[3]};
  });

  m.def(
      "normals",
      [](uint64_t seed, uint32_t stream, uint32_t chain, uint64_t step, int64_t count, uintptr_t out) {
        const py::gil_scoped_release release;
        ts::normals({.seed = seed, .step = step, .stream = stream, .chain = chain}, count,
                    address<float>(out));
      },
      py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("chain"), py::arg("step"), py::arg("count"),
      py::arg("out"));

  m.def(
      "draw_minibatch",
      [](uint64_t seed, uint32_t stream, uint64_t step, int64_t chains, int64_t batch, int64_t examples,
         uintptr_t chain_ids, uintptr_t indices, uintptr_t weights) {
        const py::gil_scoped_release release;
        ts::draw_minibatch({.seed = seed,
                            .step = step,
                            .stream = stream,
                            .chains = chains,
                            .batch = batch,
                            .examples = examples,
                            .chain_ids = address<const int64_t>(chain_ids),
                            .indices = address<int64_t>(indices),
                            .weights = address<float>(weights)});
      },
      py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("step"), py::arg("chains"), py::arg("batch"),
      py::arg("examples"), py::arg("chain_ids"), py::arg("indices"), py::arg("weights"));

  m.def(
      "metric_sums",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t inverse_masses,
         uintptr_t partial_sums, uintptr_t metric, int threads) {
        const py::gil_scoped_release release;
        ts::metric_sums(chains, parameters, address<const float>(weights),
                        address<const float>(inverse_masses), address<double>(partial_sums),
                        address<double>(metric), threads);
      },
      py::kw_only(), py::arg("chains"), py::arg("parameters"), py::arg("weights"), py::arg("inverse_masses"),
      py::arg("partial_sums"), py::arg("metric"), py::arg("threads"));

  m.def(
      "langevin_step",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t momenta, uintptr_t gradient,
         uintptr_t inverse_masses, uintptr_t noise_scales, uintptr_t proposal, uintptr_t partial_sums,
         uintptr_t coefficients, uintptr_t metric, uintptr_t multiplier, uintptr_t reachable,
         uintptr_t chain_ids, uint64_t seed, uint64_t step, uintptr_t moves, uintptr_t failed_move,
         bool advance, int threads) {
        const py::gil_scoped_release release;
        ts::langevin_step({.chains = chains,
                           .parameters = parameters,
                           .weights = address<float>(weights),
                           .momenta = address<float>(momenta),
                           .gradient = address<const float>(gradient),
                           .inverse_masses = address<const float>(inverse_masses),
                           .noise_scales = address<const float>(noise_scales),
                           .proposal = address<float>(proposal),
                           .partial_sums = address<double>(partial_sums),
                           .coefficients = address<const ts::StepCoefficients>(coefficients),
                           .metric = address<double>(metric),
                           .multiplier = address<double>(multiplier),
                           .reachable = address<uint8_t>(reachable),
                           .chain_ids = address<const int64_t>(chain_ids),
                           .seed = seed,
                           .step = step,
                           .counter = counter(moves, failed_move, advance)},
                          threads);
      },
      py::kw_only(), py::arg("chains"), py::arg("parameters"), py::arg("weights"), py::arg("momenta"),
      py::arg("gradient"), py::arg("inverse_masses"), py::arg("noise_scales"), py::arg("proposal"),
      py::arg("partial_sums"), py::arg("coefficients"), py::arg("metric"), py::arg("multiplier"),
      py::arg("reachable"), py::arg("chain_ids"), py::arg("seed"), py::arg("step"), py::arg("moves"),
      py::arg("failed_move"), py::arg("advance"), py::arg("threads"));

  m.def(
      "langevin_momenta",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t momenta, uintptr_t gradient,
         uintptr_t inverse_masses, uintptr_t noise_scales, uintptr_t full_momenta, uintptr_t partial_sums,
         uintptr_t coefficients, uintptr_t metric, uintptr_t kinetic_energy, uintptr_t chain_ids,
         uint64_t seed, uint64_t step, uintptr_t moves, uintptr_t failed_move, bool advance, int threads) {
        const py::gil_scoped_release release;
        ts::langevin_momenta({.chains = chains,
                              .parameters = parameters,
                              .weights = address<const float>(weights),
                              .momenta = address<const float>(momenta),
                              .gradient = address<const float>(gradient),
                              .inverse_masses = address<const float>(inverse_masses),
                              .noise_scales = address<const float>(noise_scales),
                              .full_momenta = address<float>(full_momenta),
                              .partial_sums = address<double>(partial_sums),
                              .coefficients = address<const ts::StepCoefficients>(coefficients),
                              .metric = address<const double>(metric),
                              .kinetic_energy = address<double>(kinetic_energy),
                              .chain_ids = address<const int64_t>(chain_ids),
                              .seed = seed,
                              .step = step,
                              .counter = counter(moves, failed_move, advance)},
                             threads);
      },
      py::kw_only(), py::arg("chains"), py::arg("parameters"), py::arg("weights"), py::arg("momenta"),
      py::arg("gradient"), py::arg("inverse_masses"), py::arg("noise_scales"), py::arg("full_momenta"),
      py::arg("partial_sums"), py::arg("coefficients"), py::arg("metric"), py::arg("kinetic_energy"),
      py::arg("chain_ids"), py::arg("seed"), py::arg("step"), py::arg("moves"), py::arg("failed_move"),
      py::arg("advance"), py::arg("threads"));

  m.def(
      "fma_operations",
      [](int64_t rounds) {
        const py::gil_scoped_release release;
        float sink = 0.0f;
        return ts::encoder_kernels().peak(rounds, &sink);
      },
      py::arg("rounds"));

  m.def(
      "encoder_work_floats",
      [](int network, std::array<int, 5> sizes, int64_t chains, bool gradient) {
        return ts::encoder_work_floats(encoder_shape(network, sizes), chains, gradient);
      },
      py::kw_only(), py::arg("network"), py::arg("sizes"), py::arg("chains"), py::arg("gradient"));

  m.def(
      "encoder_gradient",
      [](int network, std::array<int, 5> sizes, int64_t sequences, uintptr_t tokens, uintptr_t first,
         uintptr_t site, uintptr_t target, uintptr_t code_embedding, uintptr_t code_hidden, int64_t chains,
         int64_t parameters, int64_t batch, uintptr_t weights, uintptr_t indices, uintptr_t example_weights,
         uintptr_t gradient, uintptr_t losses, uintptr_t errors, uintptr_t work, uint32_t dropout_threshold,
         uint64_t dropout_seed, int threads) {
        const py::gil_scoped_release release;
        const ts::EncoderCall call =
            encoder_call(network, sizes, sequences, tokens, first, site, target, code_embedding, code_hidden,
                         chains, parameters, batch, weights, indices, example_weights, gradient, losses,
                         errors, work, dropout_threshold, dropout_seed);
        ts::check_batch(call);
        ts::encoder_gradient(call, threads);
      },
      py::kw_only(), py::arg("network"), py::arg("sizes"), py::arg("sequences"), py::arg("tokens"),
      py::arg("first"), py::arg("site"), py::arg("target"), py::arg("code_embedding"), py::arg("code_hidden"),
      py::arg("chains"), py::arg("parameters"), py::arg("batch"), py::arg("weights"), py::arg("indices"),
      py::arg("example_weights"), py::arg("gradient"), py::arg("losses"), py::arg("errors"), py::arg("work"),
      py::arg("dropout_threshold"), py::arg("dropout_seed"), py::arg("threads"));

  m.def(
      "langevin_burst_work_floats",
      [](int network, std::array<int, 5> sizes, int64_t chains) {
        return ts::langevin_burst_work_floats(encoder_shape(network, sizes), chains);
      },
      py::kw_only(), py::arg("network"), py::arg("sizes"), py::arg("chains"));

  m.def(
      "langevin_burst",
      [](int network, std::array<int, 5> sizes, int64_t sequences, uintptr_t tokens, uintptr_t first,
         uintptr_t site, uintptr_t target, uintptr_t code_embedding, uintptr_t code_hidden, int64_t chains,
         int64_t parameters, int64_t batch, uintptr_t weights, uintptr_t momenta, uintptr_t inverse_masses,
         uintptr_t step_scales, uintptr_t momenta_scales, uintptr_t step_coefficients,
         uintptr_t momenta_coefficients, uintptr_t metric, uintptr_t chain_ids, double ridge, double tether,
         uintptr_t reference, bool one_reference, uintptr_t indices, uintptr_t example_weights,
         uintptr_t gradient, uintptr_t losses, uintptr_t errors, uintptr_t work, uintptr_t proposal,
         uintptr_t partial_sums, uintptr_t multiplier, uintptr_t reachable, uintptr_t kinetic_energy,
         uintptr_t loss_sums, uintptr_t completed, uint64_t seed, uint64_t step, int64_t moves, int threads) {
        const py::gil_scoped_release release;
        ts::langevin_burst(
            {.gradient = encoder_call(network, sizes, sequences, tokens, first, site, target, code_embedding,
                                      code_hidden, chains, parameters, batch, weights, indices,
                                      example_weights, gradient, losses, errors, work),
             .indices = address<int64_t>(indices),
             .example_weights = address<float>(example_weights),
             .step = {.chains = chains,
                      .parameters = parameters,
                      .weights = address<float>(weights),
                      .momenta = address<float>(momenta),
                      .gradient = address<const float>(gradient),
                      .inverse_masses = address<const float>(inverse_masses),
                      .noise_scales = address<const float>(step_scales),
                      .proposal = address<float>(proposal),
                      .partial_sums = address<double>(partial_sums),
                      .coefficients = address<const ts::StepCoefficients>(step_coefficients),
                      .metric = address<double>(metric),
                      .multiplier = address<double>(multiplier),
                      .reachable = address<uint8_t>(reachable),
                      .chain_ids = address<const int64_t>(chain_ids),
                      .seed = seed,
                      .step = step},
             .momenta = {.chains = chains,
                         .parameters = parameters,
                         .weights = momenta_scales != 0 ? address<const float>(weights) : nullptr,
                         .momenta = address<const float>(momenta),
                         .gradient = address<const float>(gradient),
                         .inverse_masses = address<const float>(inverse_masses),
                         .noise_scales = address<const float>(momenta_scales),
                         .full_momenta = address<float>(momenta),
                         .partial_sums = address<double>(partial_sums),
                         .coefficients = address<const ts::StepCoefficients>(momenta_coefficients),
                         .metric = address<const double>(metric),
                         .kinetic_energy = address<double>(kinetic_energy),
                         .chain_ids = address<const int64_t>(chain_ids),
                         .seed = seed,
                         .step = step},
             .harmonic = {.ridge = ridge,
                          .tether = tether,
                          .reference = address<const float>(reference),
                          .one_reference = one_reference},
             .moves = moves,
             .loss_sums = address<double>(loss_sums),
             .completed = address<int64_t>(completed)},
            threads);
      },
      py::kw_only(), py::arg("network"), py::arg("sizes"), py::arg("sequences"), py::arg("tokens"),
      py::arg("first"), py::arg("site"), py::arg("target"), py::arg("code_embedding"), py::arg("code_hidden"),
      py::arg("chains"), py::arg("parameters"), py::arg("batch"), py::arg("weights"), py::arg("momenta"),
      py::arg("inverse_masses"), py::arg("step_scales"), py::arg("momenta_scales"),
      py::arg("step_coefficients"), py::arg("momenta_coefficients"), py::arg("metric"), py::arg("chain_ids"),
      py::arg("ridge"), py::arg("tether"), py::arg("reference"), py::arg("one_reference"), py::arg("indices"),
      py::arg("example_weights"), py::arg("gradient"), py::arg("losses"), py::arg("errors"), py::arg("work"),
      py::arg("proposal"), py::arg("partial_sums"), py::arg("multiplier"), py::arg("reachable"),
      py::arg("kinetic_energy"), py::arg("loss_sums"), py::arg("completed"), py::arg("seed"), py::arg("step"),
      py::arg("moves"), py::arg("threads"));

  bind_layers(m);
  bind_cuda(m);
}
