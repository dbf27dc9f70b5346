// The step over (chain × segment), a block of threads a segment: propose and root, then project. The block of
// a chain that finishes last joins the segments' sums, so no kernel is launched for the root.
//
// Sums keep the CPU's order (langevin_arithmetic.h), so a chain has the same bits on both. The price: in each
// segment 16 threads a sum add 256 numbers one after another, about 256 latencies of a float64 addition,
// while other blocks of the multiprocessor load. Both factors of a sum's terms lie in shared memory as
// float32, and are multiplied in float64 where they are added, which is exact.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "langevin_arithmetic.h"
#include "langevin_step_cuda.h"
#include "normal.h"

namespace thermosphere {
namespace {

constexpr int threads = 256;

// A block's shared memory, 32 kB: four blocks a multiprocessor on sm_80, six on sm_90.
struct alignas(16) Terms {
  float x[segment_elements];
  float y[segment_elements];
};
union Room {
  Terms terms;                     // of a segment's sums; x holds its noise before
  double parts[segment_elements];  // sums of segments, where the last block of a chain joins them
};

// use(i, load(i)) for the elements of this thread, `together` loads before their uses: a store in between
// would hold back the loads of the next element.
template <class Load, class Use>
__device__ void for_elements(const Part& part, const Load& load, const Use& use) {
  constexpr int together = 4;
  const int count = static_cast<int>(part.count);
  int first = threadIdx.x;
  for (; first + (together - 1) * threads < count; first += together * threads) {
    decltype(load(0)) loaded[together];
#pragma unroll
    for (int k = 0; k < together; ++k) loaded[k] = load(first + k * threads);
#pragma unroll
    for (int k = 0; k < together; ++k) use(first + k * threads, loaded[k]);
  }
  for (; first < count; first += threads) use(first, load(first));
}

// What the passes read of an element.
struct ToPropose {
  float weight, momentum, gradient, inverse_mass, noise_scale;
};
struct ToProject {
  float weight, momentum, inverse_mass;
};

// Normals of the part's elements. Element by element afterwards: rows need not be aligned to 16 bytes.
__device__ void draw_noise(const Draw& draw, const Part& part, float* noise) {
  for (int quad = threadIdx.x; 4 * quad < part.count; quad += threads) {
    const Words words = draw_words(draw, part.first_quad + quad);
    const Pair low = normal_pair(words.word[0], words.word[1]);
    const Pair high = normal_pair(words.word[2], words.word[3]);
    noise[4 * quad] = low.first;
    noise[4 * quad + 1] = low.second;
    noise[4 * quad + 2] = high.first;
    noise[4 * quad + 3] = high.second;
  }
  __syncthreads();
}

// The part's Σ x y, Σ x², Σ y², or the first of them alone, to out[0 … sums).
template <int sums>
__device__ void store_sums(const Terms& terms, const Part& part, double* out) {
  __shared__ double lane_sums[sums][sum_lanes];
  __syncthreads();
  if (threadIdx.x < sums * sum_lanes) {
    const int which = threadIdx.x / sum_lanes, lane = threadIdx.x % sum_lanes;
    const float* first = which == 2 ? terms.y : terms.x;
    const float* second = which == 1 ? terms.x : terms.y;
    const int count = static_cast<int>(part.count);
    double sum = 0.0;
#pragma unroll 8
    for (int i = lane; i < count; i += sum_lanes)
      sum += static_cast<double>(first[i]) * static_cast<double>(second[i]);
    lane_sums[which][lane] = sum;
  }
  __syncthreads();
  if (threadIdx.x < sums) {
    out[threadIdx.x] = join_lanes(lane_sums[threadIdx.x]);
    __threadfence();  // seen by the block that will count as the last
  }
}

// Whether this block is the last of its chain to come here. The count is left at zero.
__device__ bool last_of_chain(uint32_t* blocks_done, const Part& part, int64_t segments) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned int others = static_cast<unsigned int>(segments - 1);
    last = atomicInc(&blocks_done[part.chain], others) == others;
  }
  __syncthreads();
  return last;
}

// Sum `threadIdx.x` of a chain, over its segments in ascending order, in the first `sums` threads. All
// threads load, past the first-level cache, which may hold what was there before.
template <int sums>
__device__ double join_segments(const double* partial_sums, const Part& part, int64_t segments,
                                double* parts) {
  constexpr int64_t at_once = segment_elements / sums;
  double sum = 0.0;
  for (int64_t first = 0; first < segments; first += at_once) {
    const int count = static_cast<int>(segments - first < at_once ? segments - first : at_once);
    const double* from = partial_sums + (part.chain * segments + first) * 3;
    for (int i = threadIdx.x; i < count * sums; i += threads)
      parts[i] = __ldcg(&from[i / sums * 3 + i % sums]);
    __syncthreads();
    if (threadIdx.x < sums) {
#pragma unroll 8
      for (int i = 0; i < count; ++i) sum += parts[i * sums + threadIdx.x];
    }
    __syncthreads();
  }
  return sum;
}

// By one thread of each chain's last block: the last chain moves the counter on.
__device__ void advance(const MoveCounter& counter, uint32_t* blocks_done, int64_t chains) {
  if (!counter.advance) return;
  const unsigned int others = static_cast<unsigned int>(chains - 1);
  if (atomicInc(&blocks_done[chains], others) == others) *counter.moves += 1;
}

__global__ void __launch_bounds__(threads)
    metric_kernel(int64_t parameters, const float* __restrict__ weights,
                  const float* __restrict__ inverse_masses, double* partial_sums, double* metric,
                  uint32_t* blocks_done) {
  __shared__ Room room;
  Terms& terms = room.terms;
  const int64_t segments = segment_count(parameters);
  const Part part = part_of(blockIdx.x, segments, parameters);
  for_elements(
      part, [&](int i) { return ToProject{weights[part.offset + i], 0.0f, inverse_masses[part.offset + i]}; },
      [&](int i, const ToProject& e) {
        terms.x[i] = e.weight;
        terms.y[i] = e.weight * e.inverse_mass;
      });
  store_sums<1>(terms, part, partial_sums + static_cast<int64_t>(blockIdx.x) * 3);
  if (!last_of_chain(blocks_done, part, segments)) return;
  const double sum = join_segments<1>(partial_sums, part, segments, room.parts);
  if (threadIdx.x == 0) metric[part.chain] = sum;
}

__global__ void __launch_bounds__(threads) propose_kernel(const LangevinStep s, uint32_t* blocks_done) {
  __shared__ Room room;
  Terms& terms = room.terms;
  __shared__ double sums[3];
  const int64_t segments = segment_count(s.parameters);
  const Part part = part_of(blockIdx.x, segments, s.parameters);
  const StepFactors factors = step_factors(s.coefficients[part.chain], s.metric[part.chain]);
  draw_noise(make_draw(s.seed, Stream::noise, static_cast<uint32_t>(s.chain_ids[part.chain]),
                       move_of(s.step, s.counter)),
             part, terms.x);
  const float* __restrict__ weights = s.weights + part.offset;
  const float* __restrict__ momenta = s.momenta + part.offset;
  const float* __restrict__ gradient = s.gradient + part.offset;
  const float* __restrict__ inverse_masses = s.inverse_masses + part.offset;
  const float* __restrict__ noise_scales = s.noise_scales + part.offset;
  float* __restrict__ proposal = s.proposal + part.offset;
  for_elements(
      part,
      [&](int i) {
        return ToPropose{weights[i], momenta[i], gradient[i], inverse_masses[i], noise_scales[i]};
      },
      [&](int i, const ToPropose& e) {
        const Proposed to = propose_element(factors, e.weight, e.momentum, e.gradient, e.inverse_mass,
                                            e.noise_scale, terms.x[i]);
        proposal[i] = to.kicked;
        terms.x[i] = to.moved;
        terms.y[i] = to.pull;
      });
  store_sums<3>(terms, part, s.partial_sums + static_cast<int64_t>(blockIdx.x) * 3);
  if (!last_of_chain(blocks_done, part, segments)) return;
  const double sum = join_segments<3>(s.partial_sums, part, segments, room.parts);
  if (threadIdx.x < 3) sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) settle_root(s, part.chain, sums[0], sums[1], sums[2]);
}

__global__ void __launch_bounds__(threads) project_kernel(const LangevinStep s, uint32_t* blocks_done) {
  __shared__ Room room;
  Terms& terms = room.terms;
  const int64_t segments = segment_count(s.parameters);
  const Part part = part_of(blockIdx.x, segments, s.parameters);
  const bool reachable = s.reachable[part.chain] != 0;
  if (reachable) {
    const double dt = s.coefficients[part.chain].dt, multiplier = s.multiplier[part.chain];
    const float dt_f = static_cast<float>(dt), multiplier_f = static_cast<float>(multiplier);
    const float momentum_shift = static_cast<float>(multiplier / dt);
    float* __restrict__ weights = s.weights + part.offset;
    float* __restrict__ momenta = s.momenta + part.offset;
    const float* __restrict__ proposal = s.proposal + part.offset;
    const float* __restrict__ inverse_masses = s.inverse_masses + part.offset;
    for_elements(
        part, [&](int i) { return ToProject{weights[i], proposal[i], inverse_masses[i]}; },
        [&](int i, const ToProject& e) {
          const Projected to =
              project_element(dt_f, multiplier_f, momentum_shift, e.weight, e.momentum, e.inverse_mass);
          weights[i] = to.weight;
          momenta[i] = to.momentum;
          terms.x[i] = to.weight;
          terms.y[i] = to.weight * e.inverse_mass;
        });
    store_sums<1>(terms, part, s.partial_sums + static_cast<int64_t>(blockIdx.x) * 3);
  }
  if (!last_of_chain(blocks_done, part, segments)) return;
  const double sum = join_segments<1>(s.partial_sums, part, segments, room.parts);
  if (threadIdx.x != 0) return;
  if (reachable) s.metric[part.chain] = sum;
  advance(s.counter, blocks_done, s.chains);
}

__global__ void __launch_bounds__(threads) momenta_kernel(const LangevinMomenta s, uint32_t* blocks_done) {
  __shared__ Room room;
  Terms& terms = room.terms;
  const int64_t segments = segment_count(s.parameters);
  const Part part = part_of(blockIdx.x, segments, s.parameters);
  if (stands_still(s.counter, part.chain)) return;
  const StepFactors factors = step_factors(s.coefficients[part.chain], s.metric[part.chain]);
  draw_noise(make_draw(s.seed, Stream::momentum_noise, static_cast<uint32_t>(s.chain_ids[part.chain]),
                       move_of(s.step, s.counter)),
             part, terms.x);
  const float* __restrict__ weights = s.weights + part.offset;
  const float* momenta = s.momenta + part.offset;  // may alias the output
  const float* __restrict__ gradient = s.gradient + part.offset;
  const float* __restrict__ inverse_masses = s.inverse_masses + part.offset;
  const float* __restrict__ noise_scales = s.noise_scales + part.offset;
  float* full_momenta = s.full_momenta + part.offset;
  for_elements(
      part,
      [&](int i) {
        return ToPropose{weights[i], momenta[i], gradient[i], inverse_masses[i], noise_scales[i]};
      },
      [&](int i, const ToPropose& e) {
        const FullMomentum p = full_momentum_element(factors, e.weight, e.momentum, e.gradient,
                                                     e.inverse_mass, e.noise_scale, terms.x[i]);
        full_momenta[i] = p.momentum;
        terms.x[i] = p.momentum;
        terms.y[i] = p.pull;
      });
  store_sums<1>(terms, part, s.partial_sums + static_cast<int64_t>(blockIdx.x) * 3);
  if (!last_of_chain(blocks_done, part, segments)) return;
  const double sum = join_segments<1>(s.partial_sums, part, segments, room.parts);
  if (threadIdx.x == 0)  // holds the tangent shift until the energy replaces it
    s.kinetic_energy[part.chain] = s.coefficients[part.chain].norm2 >= 0.0 ? sum / s.metric[part.chain] : 0.0;
}

__global__ void __launch_bounds__(threads) tangent_kernel(const LangevinMomenta s, uint32_t* blocks_done) {
  __shared__ Room room;
  Terms& terms = room.terms;
  const int64_t segments = segment_count(s.parameters);
  const Part part = part_of(blockIdx.x, segments, s.parameters);
  const bool still = stands_still(s.counter, part.chain);
  if (!still) {
    const float shift = static_cast<float>(s.kinetic_energy[part.chain]);
    const float* __restrict__ weights = s.weights + part.offset;
    const float* __restrict__ inverse_masses = s.inverse_masses + part.offset;
    float* __restrict__ full_momenta = s.full_momenta + part.offset;
    for_elements(
        part, [&](int i) { return ToProject{weights[i], full_momenta[i], inverse_masses[i]}; },
        [&](int i, const ToProject& e) {
          const float p = tangent_element(shift, e.momentum, e.weight);
          full_momenta[i] = p;
          terms.x[i] = p;
          terms.y[i] = p * e.inverse_mass;
        });
    store_sums<1>(terms, part, s.partial_sums + static_cast<int64_t>(blockIdx.x) * 3);
  }
  if (!last_of_chain(blocks_done, part, segments)) return;
  const double sum = join_segments<1>(s.partial_sums, part, segments, room.parts);
  if (threadIdx.x != 0) return;
  if (!still) s.kinetic_energy[part.chain] = 0.5 * sum;
  advance(s.counter, blocks_done, s.chains);
}

__global__ void __launch_bounds__(threads) normals_kernel(const Draw draw, int64_t count, float* out) {
  __shared__ float noise[segment_elements];
  const Part part = part_of(blockIdx.x, segment_count(count), count);
  draw_noise(draw, part, noise);
  for (int i = threadIdx.x; i < part.count; i += threads) out[part.offset + i] = noise[i];
}

template <class... Parameters, class... Arguments>
void launch(const char* op, int64_t blocks, void* stream, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  if (blocks < 1 || blocks > INT32_MAX)
    throw std::invalid_argument(std::string(op) + ": chains times segments of " +
                                std::to_string(segment_elements) + " parameters must be in [1, 2**31), got " +
                                std::to_string(blocks));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here: leave none behind
  throw std::runtime_error(std::string(op) + ": CUDA: " + cudaGetErrorString(error));
}

}  // namespace

void metric_sums_cuda(int64_t chains, int64_t parameters, const float* weights, const float* inverse_masses,
                      double* partial_sums, double* metric, const CudaWork& work) {
  launch("metric_sums", chains * segment_count(parameters), work.stream, metric_kernel, parameters, weights,
         inverse_masses, partial_sums, metric, work.blocks_done);
}

void langevin_step_cuda(const LangevinStep& step, const CudaWork& work) {
  const int64_t blocks = step.chains * segment_count(step.parameters);
  launch("langevin_step", blocks, work.stream, propose_kernel, step, work.blocks_done);
  launch("langevin_step", blocks, work.stream, project_kernel, step, work.blocks_done);
}

void langevin_momenta_cuda(const LangevinMomenta& step, const CudaWork& work) {
  const int64_t blocks = step.chains * segment_count(step.parameters);
  launch("langevin_momenta", blocks, work.stream, momenta_kernel, step, work.blocks_done);
  launch("langevin_momenta", blocks, work.stream, tangent_kernel, step, work.blocks_done);
}

void normals_cuda(const NormalDraw& draw, int64_t count, float* out, void* stream) {
  launch("normals", segment_count(count), stream, normals_kernel,
         make_draw(draw.seed, static_cast<Stream>(draw.stream), draw.chain, draw.step), count, out);
}

}  // namespace thermosphere
