#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace thermosphere {
namespace {

struct Isa {
  const char* name;
  const LangevinStepKernels* langevin_step;
  const EncoderKernels* encoder;
  LayerKernels layers;
};

#define THERMOSPHERE_LAYERS(isa) \
  {attention_norm_kernels_##isa, feedforward_norm_kernels_##isa, masked_cross_entropy_kernels_##isa}

std::vector<Isa> detect() {
  std::vector<Isa> found{{"baseline", &langevin_step_kernels_baseline, &encoder_kernels_baseline,
                          THERMOSPHERE_LAYERS(baseline)}};
#if defined(THERMOSPHERE_X86_64)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3)
    found.push_back({"x86-64-v3", &langevin_step_kernels_v3, &encoder_kernels_v3, THERMOSPHERE_LAYERS(v3)});
  if (v4)
    found.push_back({"x86-64-v4", &langevin_step_kernels_v4, &encoder_kernels_v4, THERMOSPHERE_LAYERS(v4)});
#endif
  return found;
}

const std::vector<Isa>& available() {
  static const std::vector<Isa> found = detect();
  return found;
}

const Isa& find(const std::string& name) {
  std::string names;
  for (const Isa& isa : available()) {
    if (name == isa.name) return isa;
    names += names.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("instruction set: expected one of " + names + ", got " + name);
}

// Atomic: a call may run, without the interpreter's lock, while another thread chooses.
std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa = [] {
    const char* name = std::getenv("THERMOSPHERE_ISA");
    return name != nullptr && *name != '\0' ? &find(name) : &available().back();
  }();
  return isa;
}

}  // namespace

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Isa& isa : available()) names.emplace_back(isa.name);
  return names;
}

std::string isa_chosen() { return chosen().load()->name; }

void isa_choose(const std::string& name) { chosen() = &find(name); }

const LangevinStepKernels& langevin_step_kernels() { return *chosen().load()->langevin_step; }

const EncoderKernels& encoder_kernels() { return *chosen().load()->encoder; }

const LayerKernels& layer_kernels() { return chosen().load()->layers; }

}  // namespace thermosphere
