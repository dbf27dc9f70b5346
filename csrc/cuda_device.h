// What doctor says of CUDA.
#pragma once

namespace thermosphere {

struct CudaDevices {
  int count;           // devices the driver shows; 0 where there is no driver
  int driver_version;  // 1000 major + 10 minor; 0 where there is none
};

CudaDevices cuda_devices();

}  // namespace thermosphere
