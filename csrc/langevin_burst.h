// k moves of every chain in one call: mini-batch, gradient, step, and again, without returning to Python.
#pragma once

#include "encoder_gradient.h"
#include "langevin_step.h"

namespace thermosphere {

// U + (ridge/2)|w|² + (tether/2)|w - reference|²
struct Harmonic {
  double ridge, tether;
  const float* reference;  // (C, N) or (N); null where tether is 0
  bool one_reference;      // (N): the same for every chain
};

struct LangevinBurst {
  EncoderCall gradient;  // its batch is drawn anew for each gradient; indices null: the whole set
  int64_t* indices;      // (C, B) what the draws are written to, and
  float* example_weights;
  LangevinStep step;        // with the number of the first move
  LangevinMomenta momenta;  // the paper's second half of a move; weights null: leapfrog
  Harmonic harmonic;
  int64_t moves;
  double* loss_sums;   // (C) in, out: each move's mini-batch loss is added
  int64_t* completed;  // (C) out: moves made, fewer than `moves` where the sphere was out of reach
};

// Scratch of `gradient.work`: every chain has its own.
int64_t langevin_burst_work_floats(const EncoderShape& shape, int64_t chains);

// A chain that fails stops at its last good weights and momenta, with the loss and gradient of the failed
// move in `gradient`; the others go on. The bits do not depend on threads, nor on how moves are cut into
// bursts.
void langevin_burst(const LangevinBurst& burst, int threads);

}  // namespace thermosphere
