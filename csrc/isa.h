// Which instruction set the kernels run on. Chosen at first use: the best the processor has, or
// what the environment variable THERMOSPHERE_ISA names.
#pragma once

#include <string>
#include <vector>

#include "encoder_layout.h"
#include "langevin_step_kernel.h"
#include "layer_kernels.h"

namespace thermosphere {

std::vector<std::string> isa_available();  // worst first
std::string isa_chosen();
void isa_choose(const std::string& name);  // throws std::invalid_argument
const LangevinStepKernels& langevin_step_kernels();
const EncoderKernels& encoder_kernels();
const LayerKernels& layer_kernels();

}  // namespace thermosphere
