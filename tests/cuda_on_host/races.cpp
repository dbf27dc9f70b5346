// Every kernel of the step once, for ThreadSanitizer: two chains of two segments, the last one short. With an
// argument, without barriers.
#include "../../csrc/langevin_step_cuda.cu"

int main(int arguments, char**) {
  using namespace thermosphere;
  cuda_on_host::barriers = arguments == 1;
  constexpr int64_t chains = 2, parameters = segment_elements + 777;
  const auto floats = [](float value) { return std::vector<float>(chains * parameters, value); };
  std::vector<float> weights = floats(1.0f), momenta = floats(0.1f), gradient = floats(0.01f);
  std::vector<float> inverse_masses = floats(0.5f), scales = floats(0.1f), proposal = floats(0.0f);
  std::vector<double> sums(3 * chains * segment_count(parameters)), metric(chains), multiplier(chains),
      energy(chains);
  std::vector<StepCoefficients> coefficients(chains, {0.1, 0.9, 0.1, 1.0, double(parameters)});
  std::vector<uint8_t> reachable(chains);
  std::vector<int64_t> chain_ids(chains), failed(chains, -1);
  std::vector<uint32_t> done(chains + 1);
  uint64_t moves = 0;
  const CudaWork work{done.data(), nullptr};
  const MoveCounter counter{&moves, failed.data(), true};

  metric_sums_cuda(chains, parameters, weights.data(), inverse_masses.data(), sums.data(), metric.data(),
                   work);
  langevin_step_cuda({chains, parameters, weights.data(), momenta.data(), gradient.data(),
                      inverse_masses.data(), scales.data(), proposal.data(), sums.data(), coefficients.data(),
                      metric.data(), multiplier.data(), reachable.data(), chain_ids.data(), 1, 0, counter},
                     work);
  langevin_momenta_cuda({chains, parameters, weights.data(), momenta.data(), gradient.data(),
                         inverse_masses.data(), scales.data(), momenta.data(), sums.data(),
                         coefficients.data(), metric.data(), energy.data(), chain_ids.data(), 1, 0, counter},
                        work);
  normals_cuda({1, 0, 0, 0}, parameters, proposal.data(), nullptr);
  return moves == 2 && reachable[0] == 1 ? 0 : 1;
}
