// The step's inner loops, one segment of one chain at a time; one table of them per instruction set.
#pragma once

#include "langevin_arithmetic.h"

namespace thermosphere {

// One segment: pointers already at its first element.
struct ProposeSegment {
  const float *weights, *momenta, *gradient, *inverse_masses, *noise_scales;
  float* proposal;
  double* sums;  // (3) out: S1, S2, S3
  Draw draw;
  uint32_t first_quad;  // index of the first element, over 4
  int64_t count;
  StepFactors factors;
};

struct ProjectSegment {
  float *weights, *momenta;
  const float *proposal, *inverse_masses;
  double* sums;  // (3) out: Σ w'²/M, 0, 0
  int64_t count;
  float dt, multiplier, momentum_shift;  // l and l/dt
};

struct MomentaSegment {
  const float *weights, *momenta, *gradient, *inverse_masses, *noise_scales;
  float* full_momenta;
  double* sums;  // (3) out: Σ p w/M, 0, 0
  Draw draw;
  uint32_t first_quad;
  int64_t count;
  StepFactors factors;
};

struct TangentSegment {
  const float *weights, *inverse_masses;
  float* full_momenta;
  double* sums;  // (3) out: Σ p²/M, 0, 0
  int64_t count;
  float shift;
};

struct MetricSegment {
  const float *weights, *inverse_masses;
  double* sums;  // (3) out: Σ w²/M, 0, 0
  int64_t count;
};

struct LangevinStepKernels {
  void (*propose)(const ProposeSegment&);
  void (*project)(const ProjectSegment&);
  void (*momenta)(const MomentaSegment&);
  void (*tangent)(const TangentSegment&);
  void (*metric)(const MetricSegment&);
  void (*normals)(const Draw&, uint32_t first_quad, int64_t count, float* out);
};

extern const LangevinStepKernels langevin_step_kernels_baseline;
extern const LangevinStepKernels langevin_step_kernels_v3;
extern const LangevinStepKernels langevin_step_kernels_v4;

}  // namespace thermosphere
