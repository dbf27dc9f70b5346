// The step over (chain × segment): propose, root, project. Partial sums are joined in segment order, so the
// bits do not depend on the number of threads.
#include "isa.h"
#include "langevin_step_kernel.h"
#include "parallel.h"

namespace thermosphere {
namespace {

double total(const double* partial_sums, int64_t chain, int64_t segments, int which) {
  double sum = 0.0;
  for (int64_t i = 0; i < segments; ++i) sum += partial_sums[(chain * segments + i) * 3 + which];
  return sum;
}

}  // namespace

void metric_sums(int64_t chains, int64_t parameters, const float* weights, const float* inverse_masses,
                 double* partial_sums, double* metric, int threads) {
  const int64_t segments = segment_count(parameters);
  const LangevinStepKernels& kernels = langevin_step_kernels();
  parallel_for(chains * segments, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, parameters);
    kernels.metric(
        {weights + part.offset, inverse_masses + part.offset, partial_sums + task * 3, part.count});
  });
  for (int64_t c = 0; c < chains; ++c) metric[c] = total(partial_sums, c, segments, 0);
}

void langevin_step(const LangevinStep& s, int threads) {
  const int64_t segments = segment_count(s.parameters);
  const int64_t tasks = s.chains * segments;
  const uint64_t move = move_of(s.step, s.counter);
  const LangevinStepKernels& kernels = langevin_step_kernels();

  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
    const StepCoefficients& c = s.coefficients[part.chain];
    const int64_t o = part.offset;
    kernels.propose(
        {.weights = s.weights + o,
         .momenta = s.momenta + o,
         .gradient = s.gradient + o,
         .inverse_masses = s.inverse_masses + o,
         .noise_scales = s.noise_scales + o,
         .proposal = s.proposal + o,
         .sums = s.partial_sums + task * 3,
         .draw = make_draw(s.seed, Stream::noise, static_cast<uint32_t>(s.chain_ids[part.chain]), move),
         .first_quad = part.first_quad,
         .count = part.count,
         .factors = step_factors(c, s.metric[part.chain])});
  });

  for (int64_t c = 0; c < s.chains; ++c)
    settle_root(s, c, total(s.partial_sums, c, segments, 0), total(s.partial_sums, c, segments, 1),
                total(s.partial_sums, c, segments, 2));

  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
    if (s.reachable[part.chain] == 0) return;
    const StepCoefficients& c = s.coefficients[part.chain];
    const int64_t o = part.offset;
    kernels.project({.weights = s.weights + o,
                     .momenta = s.momenta + o,
                     .proposal = s.proposal + o,
                     .inverse_masses = s.inverse_masses + o,
                     .sums = s.partial_sums + task * 3,
                     .count = part.count,
                     .dt = static_cast<float>(c.dt),
                     .multiplier = static_cast<float>(s.multiplier[part.chain]),
                     .momentum_shift = static_cast<float>(s.multiplier[part.chain] / c.dt)});
  });
  for (int64_t c = 0; c < s.chains; ++c)
    if (s.reachable[c] != 0) s.metric[c] = total(s.partial_sums, c, segments, 0);
  if (s.counter.advance) ++*s.counter.moves;
}

void langevin_momenta(const LangevinMomenta& s, int threads) {
  const int64_t segments = segment_count(s.parameters);
  const int64_t tasks = s.chains * segments;
  const uint64_t move = move_of(s.step, s.counter);
  const LangevinStepKernels& kernels = langevin_step_kernels();

  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
    if (stands_still(s.counter, part.chain)) return;
    const StepCoefficients& c = s.coefficients[part.chain];
    const int64_t o = part.offset;
    kernels.momenta({.weights = s.weights + o,
                     .momenta = s.momenta + o,
                     .gradient = s.gradient + o,
                     .inverse_masses = s.inverse_masses + o,
                     .noise_scales = s.noise_scales + o,
                     .full_momenta = s.full_momenta + o,
                     .sums = s.partial_sums + task * 3,
                     .draw = make_draw(s.seed, Stream::momentum_noise,
                                       static_cast<uint32_t>(s.chain_ids[part.chain]), move),
                     .first_quad = part.first_quad,
                     .count = part.count,
                     .factors = step_factors(c, s.metric[part.chain])});
  });
  for (int64_t c = 0; c < s.chains; ++c) {
    if (stands_still(s.counter, c)) continue;
    s.kinetic_energy[c] = s.coefficients[c].norm2 >= 0.0
                              ? total(s.partial_sums, c, segments, 0) / s.metric[c]
                              : 0.0;  // holds the tangent shift until the energy replaces it
  }
  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
    if (stands_still(s.counter, part.chain)) return;
    const int64_t o = part.offset;
    kernels.tangent({.weights = s.weights + o,
                     .inverse_masses = s.inverse_masses + o,
                     .full_momenta = s.full_momenta + o,
                     .sums = s.partial_sums + task * 3,
                     .count = part.count,
                     .shift = static_cast<float>(s.kinetic_energy[part.chain])});
  });
  for (int64_t c = 0; c < s.chains; ++c)
    if (!stands_still(s.counter, c)) s.kinetic_energy[c] = 0.5 * total(s.partial_sums, c, segments, 0);
  if (s.counter.advance) ++*s.counter.moves;
}

void normals(const NormalDraw& draw, int64_t count, float* out) {
  langevin_step_kernels().normals(
      make_draw(draw.seed, static_cast<Stream>(draw.stream), draw.chain, draw.step), 0, count, out);
}

}  // namespace thermosphere
