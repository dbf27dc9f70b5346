// With as many chains as threads or more, a chain stays on one core for the whole burst: no barrier, its
// weights and momenta in that core's cache. Chains left over by the division, and few chains, share the
// threads inside each gradient and step.
#include "langevin_burst.h"

#include <algorithm>

#include "langevin_arithmetic.h"
#include "minibatch.h"
#include "parallel.h"
#include "philox.h"

namespace thermosphere {
namespace {

template <class T>
T* at(T* array, int64_t offset) {
  return array == nullptr ? nullptr : array + offset;
}

// The burst of one chain.
LangevinBurst chain_of(const LangevinBurst& all, int64_t c) {
  LangevinBurst one = all;
  const int64_t n = all.step.parameters, row = c * n, batch = c * all.gradient.batch;
  const int64_t sums = c * segment_count(n) * 3;
  EncoderCall& g = one.gradient;
  g.chains = 1;
  g.weights += row;
  g.gradient += row;
  g.indices = at(g.indices, batch);
  g.example_weights = at(g.example_weights, batch);
  g.losses += c;
  g.errors += c;
  g.work += c * encoder_work_floats(g.shape, 1, true);
  one.indices = at(one.indices, batch);
  one.example_weights = at(one.example_weights, batch);

  LangevinStep& s = one.step;
  s.chains = 1;
  for (float** array : {&s.weights, &s.momenta, &s.proposal}) *array += row;
  for (const float** array : {&s.gradient, &s.inverse_masses, &s.noise_scales}) *array += row;
  s.partial_sums += sums;
  s.coefficients += c;
  s.metric += c;
  s.multiplier += c;
  s.reachable += c;
  s.chain_ids += c;

  if (all.momenta.weights != nullptr) {
    LangevinMomenta& p = one.momenta;
    p.chains = 1;
    for (const float** array : {&p.weights, &p.momenta, &p.gradient, &p.inverse_masses, &p.noise_scales})
      *array += row;
    p.full_momenta += row;
    p.partial_sums += sums;
    p.coefficients += c;
    p.metric += c;
    p.kinetic_energy += c;
    p.chain_ids += c;
  }
  if (!all.harmonic.one_reference) one.harmonic.reference = at(all.harmonic.reference, row);
  one.loss_sums += c;
  one.completed += c;
  return one;
}

// gradient += constant · away(i) for a segment; returns Σ away². In lanes: one sum alone would wait for
// each addition, and the two terms took as long as a twentieth of a gradient.
template <class Away>
double add_spring(float constant, int64_t first, int64_t last, float* gradient, const Away& away) {
  double lane[sum_lanes] = {};
  int64_t i = first;
  for (; i + sum_lanes <= last; i += sum_lanes)
    for (int k = 0; k < sum_lanes; ++k) {
      const float x = away(i + k);
      lane[k] += static_cast<double>(x) * static_cast<double>(x);
      gradient[i + k] += constant * x;
    }
  for (int k = 0; i + k < last; ++k) {
    const float x = away(i + k);
    lane[k] += static_cast<double>(x) * static_cast<double>(x);
    gradient[i + k] += constant * x;
  }
  return join_lanes(lane);
}

// Adds the harmonic terms of one chain to its gradient and loss, segment by segment; partial_sums: 2 a
// segment.
void add_harmonic(const Harmonic& h, int64_t parameters, const float* weights, float* gradient, double* loss,
                  double* partial_sums, int threads) {
  if (h.ridge <= 0.0 && h.tether <= 0.0) return;
  const int64_t segments = segment_count(parameters);
  parallel_for(segments, threads, [&](int64_t segment) {
    const int64_t first = segment * segment_elements, last = std::min(first + segment_elements, parameters);
    double* sums = partial_sums + 2 * segment;
    sums[0] = sums[1] = 0.0;
    if (h.ridge > 0.0)
      sums[0] = add_spring(static_cast<float>(h.ridge), first, last, gradient,
                           [&](int64_t i) { return weights[i]; });
    if (h.tether > 0.0)
      sums[1] = add_spring(static_cast<float>(h.tether), first, last, gradient,
                           [&](int64_t i) { return weights[i] - h.reference[i]; });
  });
  double ridge = 0.0, tether = 0.0;
  for (int64_t segment = 0; segment < segments; ++segment) {
    ridge += partial_sums[2 * segment];
    tether += partial_sums[2 * segment + 1];
  }
  *loss += 0.5 * h.ridge * ridge + 0.5 * h.tether * tether;
}

// Loss and gradient of one chain on a mini-batch of its own.
void minibatch_gradient(const LangevinBurst& chain, Stream stream, uint64_t step, int threads) {
  const EncoderCall& g = chain.gradient;
  if (chain.indices != nullptr)
    draw_minibatch({.seed = chain.step.seed,
                    .step = step,
                    .stream = static_cast<uint32_t>(stream),
                    .chains = 1,
                    .batch = g.batch,
                    .examples = g.set.count,
                    .chain_ids = chain.step.chain_ids,
                    .indices = chain.indices,
                    .weights = chain.example_weights});
  encoder_gradient(g, threads);
  add_harmonic(chain.harmonic, g.parameters, g.weights, g.gradient, g.losses, chain.step.partial_sums,
               threads);
}

void run_chain(LangevinBurst chain, int threads) {
  int64_t& done = *chain.completed;
  for (done = 0; done < chain.moves; ++done, ++chain.step.step, ++chain.momenta.step) {
    minibatch_gradient(chain, Stream::minibatch, chain.step.step, threads);
    const double loss = *chain.gradient.losses;
    langevin_step(chain.step, threads);
    if (*chain.step.reachable == 0) return;
    *chain.loss_sums += loss;
    if (chain.momenta.weights == nullptr) continue;
    minibatch_gradient(chain, Stream::minibatch_end, chain.step.step, threads);
    langevin_momenta(chain.momenta, threads);
  }
}

}  // namespace

int64_t langevin_burst_work_floats(const EncoderShape& shape, int64_t chains) {
  return chains * encoder_work_floats(shape, 1, true);
}

void langevin_burst(const LangevinBurst& burst, int threads) {
  const int64_t chains = burst.step.chains, alone = chains - chains % threads;
  parallel_for(alone, threads, [&](int64_t c) { run_chain(chain_of(burst, c), 1); });
  for (int64_t c = alone; c < chains; ++c) run_chain(chain_of(burst, c), threads);
}

}  // namespace thermosphere
