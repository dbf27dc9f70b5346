// The step on a GPU: the arguments of langevin_step.h with every array in device memory. Calls are put on the
// stream and return: nothing waits, nothing is allocated, so that they can be captured in a CUDA graph. Call
// each once before a capture: the first call loads its kernels.
#pragma once

#include "langevin_step.h"

namespace thermosphere {

struct CudaWork {
  uint32_t* blocks_done;  // (C + 1) zero before the first call, and after each
  void* stream;           // cudaStream_t
};

// Each makes the bits of its namesake on the CPU. Throws std::runtime_error with CUDA's text where a launch
// is refused (no driver, no device), std::invalid_argument where the grid would be too large.
void metric_sums_cuda(int64_t chains, int64_t parameters, const float* weights, const float* inverse_masses,
                      double* partial_sums, double* metric, const CudaWork& work);
void langevin_step_cuda(const LangevinStep& step, const CudaWork& work);
void langevin_momenta_cuda(const LangevinMomenta& step, const CudaWork& work);
void normals_cuda(const NormalDraw& draw, int64_t count, float* out, void* stream);

}  // namespace thermosphere
