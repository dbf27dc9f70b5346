// The constrained pseudo-Langevin step on flat weight vectors (Eq. 34-41 of arXiv 2603.29529).
//
//   Π̃ = a Π - b g + s η,   g = gradient + τ (w/M)/Σ(w²/M)
//   w̃ = w + (dt/M) Π̃,     w' = w̃ + l w/M,   |w'|² = Q
//   Π  = Π̃ + (l/dt) w
//
// (a, b, s) choose the scheme: leapfrog or the first half of the paper's. τ is the temperature where the
// metric correction is on, else 0.
#pragma once

#include "host_device.h"

namespace thermosphere {

// Elements that share one float64 partial sum: the unit of work and of the fixed summation order.
constexpr int64_t segment_elements = 4096;

// One chain's numbers.
struct StepCoefficients {
  double dt, momentum_factor, gradient_factor, metric_temperature;
  double norm2;  // Q; negative: no constraint
};

// Where moves that are replayed without the host (a CUDA graph) keep their place. Left out, the move is
// `step` and a failure is told by `reachable` alone.
struct MoveCounter {
  uint64_t* moves = nullptr;       // () added to `step`
  int64_t* failed_move = nullptr;  // (C) -1, or the first move that failed; such a chain stands still
  bool advance = false;            // moves += 1 once the call is through
};

struct LangevinStep {
  int64_t chains, parameters;
  float* weights;                        // (C, N) in, out
  float* momenta;                        // (C, N) in, out
  const float* gradient;                 // (C, N)
  const float* inverse_masses;           // (C, N)
  const float* noise_scales;             // (C, N) s
  float* proposal;                       // (C, N) scratch: Π̃
  double* partial_sums;                  // (C, segments, 3) scratch
  const StepCoefficients* coefficients;  // (C)
  double* metric;                        // (C) Σ w²/M of the weights, in and out
  double* multiplier;                    // (C) out: l = λ dt²
  uint8_t* reachable;        // (C) out: 0: sphere out of reach or not finite, the chain was left as it was
  const int64_t* chain_ids;  // (C)
  uint64_t seed, step;
  MoveCounter counter = {};
};

// Full-step momenta p = a (Π - b g) + s η', made tangent: p -= w Σ(p w/M)/Σ(w²/M). Serves the kinetic
// energy of both schemes and the second half of the paper's.
struct LangevinMomenta {
  int64_t chains, parameters;
  const float* weights;                  // (C, N)
  const float* momenta;                  // (C, N) Π
  const float* gradient;                 // (C, N)
  const float* inverse_masses;           // (C, N)
  const float* noise_scales;             // (C, N)
  float* full_momenta;                   // (C, N) out, may be `momenta`
  double* partial_sums;                  // (C, segments, 3) scratch
  const StepCoefficients* coefficients;  // (C)
  const double* metric;                  // (C) Σ w²/M
  double* kinetic_energy;                // (C) out: Σ p²/2M
  const int64_t* chain_ids;              // (C)
  uint64_t seed, step;
  MoveCounter counter = {};  // a chain that stands still keeps `full_momenta` and `kinetic_energy`
};

THERMOSPHERE_INLINE int64_t segment_count(int64_t parameters) {
  return (parameters + segment_elements - 1) / segment_elements;
}

// Σ w²/M of each chain, in the summation order of the step.
void metric_sums(int64_t chains, int64_t parameters, const float* weights, const float* inverse_masses,
                 double* partial_sums, double* metric, int threads);
void langevin_step(const LangevinStep& step, int threads);
void langevin_momenta(const LangevinMomenta& step, int threads);

// Standard normals of one draw, as the step makes them.
struct NormalDraw {
  uint64_t seed, step;
  uint32_t stream, chain;
};
void normals(const NormalDraw& draw, int64_t count, float* out);

}  // namespace thermosphere
