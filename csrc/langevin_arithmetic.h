// What the step does to one element, and how its sums are joined: the same lines on the CPU and on a GPU, so
// that both make the same bits.
//
// A chain is cut into segments. In a segment, element i is added to float64 lane i mod 16, in ascending
// order; the lanes are joined in a fixed tree, the segments in ascending order.
#pragma once

#include "langevin_step.h"
#include "philox.h"
#include "sphere_root.h"

namespace thermosphere {

constexpr int sum_lanes = 16;

THERMOSPHERE_INLINE double join_lanes(const double* lane) {
  double half[sum_lanes / 2];
  for (int i = 0; i < 8; ++i) half[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) half[i] += half[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

// One chain's numbers as the elements use them.
struct StepFactors {
  float dt, momentum, gradient, metric;  // dt, a, b, τ/Σ(w²/M)
};

THERMOSPHERE_INLINE StepFactors step_factors(const StepCoefficients& c, double metric) {
  return StepFactors{static_cast<float>(c.dt), static_cast<float>(c.momentum_factor),
                     static_cast<float>(c.gradient_factor),
                     c.metric_temperature == 0.0 ? 0.0f : static_cast<float>(c.metric_temperature / metric)};
}

struct Proposed {
  float kicked, moved, pull;  // Π̃, w̃, w/M
};

THERMOSPHERE_INLINE Proposed propose_element(const StepFactors& f, float w, float momentum, float gradient,
                                             float inverse_mass, float noise_scale, float noise) {
  const float pull = w * inverse_mass;
  const float force = gradient + f.metric * pull;
  const float kicked = f.momentum * momentum - f.gradient * force + noise_scale * noise;
  return Proposed{kicked, w + (f.dt * inverse_mass) * kicked, pull};
}

struct Projected {
  float weight, momentum;
};

// The proposal again, bit for bit, from Π̃: cheaper than a second array to write and read. multiplier l and
// momentum_shift l/dt.
THERMOSPHERE_INLINE Projected project_element(float dt, float multiplier, float momentum_shift, float w,
                                              float kicked, float inverse_mass) {
  const float moved = w + (dt * inverse_mass) * kicked;
  return Projected{moved + multiplier * (w * inverse_mass), kicked + momentum_shift * w};
}

struct FullMomentum {
  float momentum, pull;  // p before it is made tangent, w/M
};

THERMOSPHERE_INLINE FullMomentum full_momentum_element(const StepFactors& f, float w, float momentum,
                                                       float gradient, float inverse_mass, float noise_scale,
                                                       float noise) {
  const float pull = w * inverse_mass;
  const float force = gradient + f.metric * pull;
  return FullMomentum{f.momentum * (momentum - f.gradient * force) + noise_scale * noise, pull};
}

// p made tangent: shift Σ(p w/M)/Σ(w²/M).
THERMOSPHERE_INLINE float tangent_element(float shift, float momentum, float w) {
  return momentum - shift * w;
}

THERMOSPHERE_INLINE uint64_t move_of(uint64_t step, const MoveCounter& counter) {
  return step + (counter.moves == nullptr ? 0 : *counter.moves);
}

THERMOSPHERE_INLINE bool stands_still(const MoveCounter& counter, int64_t chain) {
  return counter.failed_move != nullptr && counter.failed_move[chain] >= 0;
}

// The multiplier of a chain from its sums, or the record of its failure. Without a constraint the multiplier
// is 0, and reachable means finite.
THERMOSPHERE_INLINE void settle_root(const LangevinStep& s, int64_t chain, double s1, double s2, double s3) {
  const double norm2 = s.coefficients[chain].norm2;
  SphereRoot root = norm2 >= 0.0 ? sphere_root(s1, s2, s3, norm2) : SphereRoot{0.0, s2 - s2 == 0.0};
  if (stands_still(s.counter, chain))
    root = SphereRoot{0.0, false};
  else if (!root.reachable && s.counter.failed_move != nullptr)
    s.counter.failed_move[chain] = static_cast<int64_t>(move_of(s.step, s.counter));
  s.multiplier[chain] = root.multiplier;
  s.reachable[chain] = root.reachable ? 1 : 0;
}

// The part of a (C, N) array that one task, or one block of threads, works on: a segment of a chain.
struct Part {
  int64_t chain, segment, offset, count;
  uint32_t first_quad;  // index of its first element in the chain, over 4
};

THERMOSPHERE_INLINE Part part_of(int64_t task, int64_t segments, int64_t parameters) {
  const int64_t chain = task / segments;
  const int64_t segment = task % segments;
  const int64_t start = segment * segment_elements;
  const int64_t left = parameters - start;
  return Part{chain, segment, chain * parameters + start, left < segment_elements ? left : segment_elements,
              static_cast<uint32_t>(start / 4)};
}

}  // namespace thermosphere
