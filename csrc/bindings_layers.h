#pragma once

#include <pybind11/pybind11.h>

// The layers (attention_norm, feedforward_norm, masked_cross_entropy) and mean_attention.
void bind_layers(pybind11::module_& m);
