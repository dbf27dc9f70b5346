// What the CUDA calls do in an extension that was built without nvcc.
#include <stdexcept>
#include <string>

#include "langevin_step_cuda.h"

namespace thermosphere {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw std::runtime_error(std::string(op) +
                           ": this build of thermosphere has no CUDA kernels (no nvcc when it was built)");
}

}  // namespace

void metric_sums_cuda(int64_t, int64_t, const float*, const float*, double*, double*, const CudaWork&) {
  refuse("metric_sums");
}
void langevin_step_cuda(const LangevinStep&, const CudaWork&) { refuse("langevin_step"); }
void langevin_momenta_cuda(const LangevinMomenta&, const CudaWork&) { refuse("langevin_momenta"); }
void normals_cuda(const NormalDraw&, int64_t, float*, void*) { refuse("normals"); }

}  // namespace thermosphere
