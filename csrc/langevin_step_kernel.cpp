// Compiled once per instruction set. Every loop runs over blocks of 64 elements in the order written; sums
// are kept in 16 float64 lanes (element i of a block in lane i mod 16) and joined in a fixed tree, so SSE2,
// AVX2 and AVX-512 give the same bits.
#include "langevin_step_kernel.h"

#include "normal_block_cpu.h"

#define THERMOSPHERE_JOIN2(a, b) a##b
#define THERMOSPHERE_JOIN(a, b) THERMOSPHERE_JOIN2(a, b)

#if defined(__clang__)
#define THERMOSPHERE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define THERMOSPHERE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace thermosphere {
namespace {

constexpr int block = 4 * block_counters;
constexpr int lanes = sum_lanes;

struct Lanes {
  double lane[lanes];
};

THERMOSPHERE_INLINE void clear(Lanes& sum) {
  for (int i = 0; i < lanes; ++i) sum.lane[i] = 0.0;
}

THERMOSPHERE_INLINE double join(const Lanes& sum) { return join_lanes(sum.lane); }

// sum += a b. The product of two floats is exact in float64, so that where the processor has a fused
// multiply-add it makes the bits of a multiplication and an addition.
THERMOSPHERE_INLINE void add_product(double& sum, float a, float b) {
#if defined(__FMA__)
  sum = __builtin_fma(static_cast<double>(a), static_cast<double>(b), sum);
#else
  sum += static_cast<double>(a) * static_cast<double>(b);
#endif
}

THERMOSPHERE_INLINE void store(double* sums, double first, double second, double third) {
  sums[0] = first;
  sums[1] = second;
  sums[2] = third;
}

// Runs body(first element of a block, elements in it): the full blocks with a constant count, so that they
// unroll, and one short block at the end.
template <class Body>
THERMOSPHERE_INLINE void for_blocks(int64_t count, const Body& body) {
  int64_t first = 0;
  for (; first + block <= count; first += block) body(first, block);
  if (first < count) body(first, static_cast<int>(count - first));
}

// The same, in sub-blocks of 16: body(element, lane). Elements are independent: said so, because the check at
// run time that arrays do not overlap cost a tenth of the step.
template <class Body>
THERMOSPHERE_INLINE void for_lanes(int count, const Body& body) {
  int base = 0;
  for (; base + lanes <= count; base += lanes) {
    THERMOSPHERE_INDEPENDENT
    for (int i = 0; i < lanes; ++i) body(base + i, i);
  }
  for (int i = 0; base + i < count; ++i) body(base + i, i);
}

void propose(const ProposeSegment& s) {
  Lanes s1, s2, s3;
  clear(s1);
  clear(s2);
  clear(s3);
  const StepFactors factors = s.factors;
  NormalSource source(s.draw, s.first_quad);
  for_blocks(s.count, [&](int64_t first, int count) __attribute__((always_inline)) {
    float noise[block];
    source.next(noise);
    const float* __restrict weights = s.weights + first;
    const float* __restrict momenta = s.momenta + first;
    const float* __restrict gradient = s.gradient + first;
    const float* __restrict inverse_masses = s.inverse_masses + first;
    const float* __restrict noise_scales = s.noise_scales + first;
    float* __restrict proposal = s.proposal + first;
    for_lanes(count, [&](int i, int lane) __attribute__((always_inline)) {
      const Proposed to = propose_element(factors, weights[i], momenta[i], gradient[i], inverse_masses[i],
                                          noise_scales[i], noise[i]);
      proposal[i] = to.kicked;
      add_product(s1.lane[lane], to.moved, to.pull);
      add_product(s2.lane[lane], to.moved, to.moved);
      add_product(s3.lane[lane], to.pull, to.pull);
    });
  });
  store(s.sums, join(s1), join(s2), join(s3));
}

void project(const ProjectSegment& s) {
  Lanes metric;
  clear(metric);
  const float dt = s.dt, multiplier = s.multiplier, momentum_shift = s.momentum_shift;
  for_blocks(s.count, [&](int64_t first, int count) __attribute__((always_inline)) {
    float* __restrict weights = s.weights + first;
    float* __restrict momenta = s.momenta + first;
    const float* __restrict proposal = s.proposal + first;
    const float* __restrict inverse_masses = s.inverse_masses + first;
    for_lanes(count, [&](int i, int lane) __attribute__((always_inline)) {
      const Projected to =
          project_element(dt, multiplier, momentum_shift, weights[i], proposal[i], inverse_masses[i]);
      weights[i] = to.weight;
      momenta[i] = to.momentum;
      add_product(metric.lane[lane], to.weight, to.weight * inverse_masses[i]);
    });
  });
  store(s.sums, join(metric), 0.0, 0.0);
}

void momenta(const MomentaSegment& s) {
  Lanes overlap;
  clear(overlap);
  const StepFactors factors = s.factors;
  NormalSource source(s.draw, s.first_quad);
  for_blocks(s.count, [&](int64_t first, int count) __attribute__((always_inline)) {
    float noise[block];
    source.next(noise);
    const float* __restrict weights = s.weights + first;
    const float* half = s.momenta + first;  // may alias the output
    const float* __restrict gradient = s.gradient + first;
    const float* __restrict inverse_masses = s.inverse_masses + first;
    const float* __restrict noise_scales = s.noise_scales + first;
    float* full = s.full_momenta + first;
    for_lanes(count, [&](int i, int lane) __attribute__((always_inline)) {
      const FullMomentum p = full_momentum_element(factors, weights[i], half[i], gradient[i],
                                                   inverse_masses[i], noise_scales[i], noise[i]);
      full[i] = p.momentum;
      add_product(overlap.lane[lane], p.momentum, p.pull);
    });
  });
  store(s.sums, join(overlap), 0.0, 0.0);
}

void tangent(const TangentSegment& s) {
  Lanes energy;
  clear(energy);
  const float shift = s.shift;
  for_blocks(s.count, [&](int64_t first, int count) __attribute__((always_inline)) {
    const float* __restrict weights = s.weights + first;
    const float* __restrict inverse_masses = s.inverse_masses + first;
    float* __restrict full = s.full_momenta + first;
    for_lanes(count, [&](int i, int lane) __attribute__((always_inline)) {
      const float p = tangent_element(shift, full[i], weights[i]);
      full[i] = p;
      add_product(energy.lane[lane], p, p * inverse_masses[i]);
    });
  });
  store(s.sums, join(energy), 0.0, 0.0);
}

void metric(const MetricSegment& s) {
  Lanes metric;
  clear(metric);
  for_blocks(s.count, [&](int64_t first, int count) __attribute__((always_inline)) {
    const float* __restrict weights = s.weights + first;
    const float* __restrict inverse_masses = s.inverse_masses + first;
    for_lanes(count, [&](int i, int lane) __attribute__((always_inline)) {
      add_product(metric.lane[lane], weights[i], weights[i] * inverse_masses[i]);
    });
  });
  store(s.sums, join(metric), 0.0, 0.0);
}

void normals(const Draw& draw, uint32_t first_quad, int64_t count, float* out) {
  NormalSource source(draw, first_quad);
  for_blocks(count, [&](int64_t first, int in_block) __attribute__((always_inline)) {
    float noise[block];
    source.next(noise);
    for (int i = 0; i < in_block; ++i) out[first + i] = noise[i];
  });
}

}  // namespace

const LangevinStepKernels THERMOSPHERE_JOIN(langevin_step_kernels_, THERMOSPHERE_ISA) = {
    propose, project, momenta, tangent, metric, normals};

}  // namespace thermosphere
