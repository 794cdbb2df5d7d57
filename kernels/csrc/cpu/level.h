// The CPU kernels are compiled once per instruction set, each time into a namespace named like torch's capability:
// slm::DEFAULT for any processor, slm::AVX2 and slm::AVX512 with that instruction set's flags (setup.py).
//
// register.cpp chooses one when the extension is loaded. A new file of kernels adds its name to SLM_FOR_EACH_CPU_FILE
// and defines register_NAME; nothing in it may run before that call, static initializers included, because the
// processor may not know its instructions.
#pragma once

#include <torch/library.h>

#define SLM_FOR_EACH_CPU_FILE(DO)                                                                                      \
  DO(layer_norm) DO(rms_norm) DO(attention_forward) DO(attention_backward) DO(rotary) DO(activation)                     \
  DO(cross_entropy) DO(adamw) DO(packed_linear) DO(cached_attention) DO(decode_step)

namespace slm::CPU_CAPABILITY {

#define SLM_DECLARE(file) void register_##file(torch::Library& m);
SLM_FOR_EACH_CPU_FILE(SLM_DECLARE)

}  // namespace slm::CPU_CAPABILITY
