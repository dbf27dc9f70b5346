// The CUDA calls of the extension, run on the CPU: its kernels and bindings, compiled by the C++ compiler.
#include "../../csrc/langevin_step_cuda.cu"
//
#include "../../csrc/bindings_cuda.cpp"

PYBIND11_MODULE(cuda_on_host, m) {
  bind_cuda(m);
  m.def("set_descending", [](bool descending) { cuda_on_host::descending = descending; });
  m.def("set_no_device", [](bool no) { cuda_on_host::next_error = no ? cudaErrorNoDevice : cudaSuccess; });
  m.def("launches", [] { return cuda_on_host::launches; });
  m.def("last_stream", [] { return reinterpret_cast<uintptr_t>(cuda_on_host::last_stream); });
}
