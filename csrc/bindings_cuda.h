#pragma once

#include <pybind11/pybind11.h>

// The calls on a GPU, for bindings.cpp. Where the extension was built without nvcc they raise RuntimeError.
void bind_cuda(pybind11::module_& m);
