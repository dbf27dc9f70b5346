// The step over (chain × segment): propose, root, project. Partial sums are joined in segment order, so the
// bits do not depend on the number of threads.
#include <cmath>

#include "isa.h"
#include "langevin_step_kernel.h"
#include "parallel.h"
#include "sphere_root.h"

namespace thermosphere {
namespace {

// The part of a (C, N) array that one task works on.
struct Part {
  int64_t chain, segment, offset, count;
  uint32_t first_quad;
};

Part part_of(int64_t task, int64_t segments, int64_t parameters) {
  const int64_t chain = task / segments;
  const int64_t segment = task % segments;
  const int64_t start = segment * segment_elements;
  const int64_t left = parameters - start;
  return Part{chain, segment, chain * parameters + start, left < segment_elements ? left : segment_elements,
              static_cast<uint32_t>(start / 4)};
}

double total(const double* partial_sums, int64_t chain, int64_t segments, int which) {
  double sum = 0.0;
  for (int64_t i = 0; i < segments; ++i) sum += partial_sums[(chain * segments + i) * 3 + which];
  return sum;
}

float metric_factor(const StepCoefficients& c, double metric) {
  return c.metric_temperature == 0.0 ? 0.0f : static_cast<float>(c.metric_temperature / metric);
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
         .draw = make_draw(s.seed, Stream::noise, static_cast<uint32_t>(s.chain_ids[part.chain]), s.step),
         .first_quad = part.first_quad,
         .count = part.count,
         .dt = static_cast<float>(c.dt),
         .momentum_factor = static_cast<float>(c.momentum_factor),
         .gradient_factor = static_cast<float>(c.gradient_factor),
         .metric_factor = metric_factor(c, s.metric[part.chain])});
  });

  for (int64_t c = 0; c < s.chains; ++c) {
    const double s2 = total(s.partial_sums, c, segments, 1);
    SphereRoot root{0.0, std::isfinite(s2)};
    if (s.coefficients[c].norm2 >= 0.0)
      root = sphere_root(total(s.partial_sums, c, segments, 0), s2, total(s.partial_sums, c, segments, 2),
                         s.coefficients[c].norm2);
    s.multiplier[c] = root.multiplier;
    s.reachable[c] = root.reachable ? 1 : 0;
  }

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
}

void langevin_momenta(const LangevinMomenta& s, int threads) {
  const int64_t segments = segment_count(s.parameters);
  const int64_t tasks = s.chains * segments;
  const LangevinStepKernels& kernels = langevin_step_kernels();

  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
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
                                       static_cast<uint32_t>(s.chain_ids[part.chain]), s.step),
                     .first_quad = part.first_quad,
                     .count = part.count,
                     .momentum_factor = static_cast<float>(c.momentum_factor),
                     .gradient_factor = static_cast<float>(c.gradient_factor),
                     .metric_factor = metric_factor(c, s.metric[part.chain])});
  });
  for (int64_t c = 0; c < s.chains; ++c)
    s.kinetic_energy[c] = s.coefficients[c].norm2 >= 0.0
                              ? total(s.partial_sums, c, segments, 0) / s.metric[c]
                              : 0.0;  // holds the tangent shift until the energy replaces it
  parallel_for(tasks, threads, [&](int64_t task) {
    const Part part = part_of(task, segments, s.parameters);
    const int64_t o = part.offset;
    kernels.tangent({.weights = s.weights + o,
                     .inverse_masses = s.inverse_masses + o,
                     .full_momenta = s.full_momenta + o,
                     .sums = s.partial_sums + task * 3,
                     .count = part.count,
                     .shift = static_cast<float>(s.kinetic_energy[part.chain])});
  });
  for (int64_t c = 0; c < s.chains; ++c) s.kinetic_energy[c] = 0.5 * total(s.partial_sums, c, segments, 0);
}

void normals(const NormalDraw& draw, int64_t count, float* out) {
  langevin_step_kernels().normals(
      make_draw(draw.seed, static_cast<Stream>(draw.stream), draw.chain, draw.step), 0, count, out);
}

}  // namespace thermosphere
