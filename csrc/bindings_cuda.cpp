// The calls on a GPU: arguments of their namesakes in bindings.cpp, every address in device memory, and the
// handle of the stream that they are put on.
#include "bindings_cuda.h"

#include "langevin_step_cuda.h"

namespace py = pybind11;
namespace ts = thermosphere;

namespace {

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

ts::CudaWork work(uintptr_t blocks_done, uintptr_t stream) {
  return {address<uint32_t>(blocks_done), address<void>(stream)};
}

ts::MoveCounter counter(uintptr_t moves, uintptr_t failed_move, bool advance) {
  return {address<uint64_t>(moves), address<int64_t>(failed_move), advance};
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def(
      "normals_cuda",
      [](uint64_t seed, uint32_t stream, uint32_t chain, uint64_t step, int64_t count, uintptr_t out,
         uintptr_t cuda_stream) {
        ts::normals_cuda({.seed = seed, .step = step, .stream = stream, .chain = chain}, count,
                         address<float>(out), address<void>(cuda_stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("seed"), py::arg("stream"),
      py::arg("chain"), py::arg("step"), py::arg("count"), py::arg("out"), py::arg("cuda_stream"));

  m.def(
      "metric_sums_cuda",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t inverse_masses,
         uintptr_t partial_sums, uintptr_t metric, uintptr_t blocks_done, uintptr_t stream) {
        ts::metric_sums_cuda(chains, parameters, address<const float>(weights),
                             address<const float>(inverse_masses), address<double>(partial_sums),
                             address<double>(metric), work(blocks_done, stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("chains"), py::arg("parameters"),
      py::arg("weights"), py::arg("inverse_masses"), py::arg("partial_sums"), py::arg("metric"),
      py::arg("blocks_done"), py::arg("stream"));

  m.def(
      "langevin_step_cuda",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t momenta, uintptr_t gradient,
         uintptr_t inverse_masses, uintptr_t noise_scales, uintptr_t proposal, uintptr_t partial_sums,
         uintptr_t coefficients, uintptr_t metric, uintptr_t multiplier, uintptr_t reachable,
         uintptr_t chain_ids, uint64_t seed, uint64_t step, uintptr_t moves, uintptr_t failed_move,
         bool advance, uintptr_t blocks_done, uintptr_t stream) {
        ts::langevin_step_cuda({.chains = chains,
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
                               work(blocks_done, stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("chains"), py::arg("parameters"),
      py::arg("weights"), py::arg("momenta"), py::arg("gradient"), py::arg("inverse_masses"),
      py::arg("noise_scales"), py::arg("proposal"), py::arg("partial_sums"), py::arg("coefficients"),
      py::arg("metric"), py::arg("multiplier"), py::arg("reachable"), py::arg("chain_ids"), py::arg("seed"),
      py::arg("step"), py::arg("moves"), py::arg("failed_move"), py::arg("advance"), py::arg("blocks_done"),
      py::arg("stream"));

  m.def(
      "langevin_momenta_cuda",
      [](int64_t chains, int64_t parameters, uintptr_t weights, uintptr_t momenta, uintptr_t gradient,
         uintptr_t inverse_masses, uintptr_t noise_scales, uintptr_t full_momenta, uintptr_t partial_sums,
         uintptr_t coefficients, uintptr_t metric, uintptr_t kinetic_energy, uintptr_t chain_ids,
         uint64_t seed, uint64_t step, uintptr_t moves, uintptr_t failed_move, bool advance,
         uintptr_t blocks_done, uintptr_t stream) {
        ts::langevin_momenta_cuda({.chains = chains,
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
                                  work(blocks_done, stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::kw_only(), py::arg("chains"), py::arg("parameters"),
      py::arg("weights"), py::arg("momenta"), py::arg("gradient"), py::arg("inverse_masses"),
      py::arg("noise_scales"), py::arg("full_momenta"), py::arg("partial_sums"), py::arg("coefficients"),
      py::arg("metric"), py::arg("kinetic_energy"), py::arg("chain_ids"), py::arg("seed"), py::arg("step"),
      py::arg("moves"), py::arg("failed_move"), py::arg("advance"), py::arg("blocks_done"),
      py::arg("stream"));
}
