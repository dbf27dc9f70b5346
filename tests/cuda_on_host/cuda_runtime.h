// Enough of the CUDA runtime to run csrc/*_cuda.cu on the CPU: the threads of a block are threads, one block
// after another, shared memory is one static copy. So indices, barriers, sums, flags and counters of the
// kernels are tested where there is no GPU, and ThreadSanitizer sees races inside a block. What it cannot
// show is what concerns blocks at the same time: fences and caches.
#pragma once

#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  unsigned int x = 1;
  dim3() = default;
  explicit dim3(unsigned int count) : x(count) {}
};

typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess, cudaErrorNoDevice };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

namespace cuda_on_host {

inline bool barriers = true;                  // off: what a kernel without __syncthreads() would do
inline bool descending = false;               // the order of the blocks
inline cudaError_t next_error = cudaSuccess;  // of the launches, which then do nothing
inline thread_local std::barrier<>* barrier;
inline unsigned int launches = 0;
inline cudaStream_t last_stream = nullptr;

}  // namespace cuda_on_host

inline thread_local dim3 threadIdx, blockIdx;

inline void __syncthreads() {
  if (cuda_on_host::barriers) cuda_on_host::barrier->arrive_and_wait();
}
inline void __threadfence() {}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
inline unsigned int atomicInc(unsigned int* address, unsigned int limit) {
  const std::atomic_ref<unsigned int> count(*address);
  unsigned int old = count.load();
  while (!count.compare_exchange_weak(old, old >= limit ? 0 : old + 1)) continue;
  return old;
}

inline cudaError_t cudaGetLastError() { return cuda_on_host::next_error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "no CUDA-capable device is detected";
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace cuda_on_host;
  if (next_error != cudaSuccess) return next_error;
  ++launches;
  last_stream = config->stream;
  const unsigned int blocks = config->gridDim.x, count = config->blockDim.x;
  std::barrier together(count);
  std::vector<std::thread> threads;
  for (unsigned int t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      barrier = &together;
      threadIdx.x = t;
      for (unsigned int b = 0; b < blocks; ++b) {
        blockIdx.x = descending ? blocks - 1 - b : b;
        kernel(arguments...);
        together.arrive_and_wait();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return cudaSuccess;
}
