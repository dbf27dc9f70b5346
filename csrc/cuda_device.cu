#include <cuda_runtime.h>

#include "cuda_device.h"

namespace thermosphere {

CudaDevices cuda_devices() {
  CudaDevices devices{0, 0};
  if (cudaDriverGetVersion(&devices.driver_version) != cudaSuccess) devices.driver_version = 0;
  if (cudaGetDeviceCount(&devices.count) != cudaSuccess) {
    devices.count = 0;
    cudaGetLastError();  // the error is the answer: leave none behind
  }
  return devices;
}

}  // namespace thermosphere
