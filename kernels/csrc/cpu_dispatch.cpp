// Registers the CPU kernels of the best instruction set that this processor has and that was compiled.
//
// The choice is torch's own, so that ATEN_CPU_CAPABILITY=default|avx2|avx512 sets it for torch's ops and for ours.
#include <ATen/Version.h>

#include "cpu/level.h"
#include "ops.h"

// setup.py defines SLM_AVX2 and SLM_AVX512 where it compiles for them.
#if defined(SLM_AVX2)
namespace slm::AVX2 {
SLM_FOR_EACH_CPU_FILE(SLM_DECLARE)
}
#endif
#if defined(SLM_AVX512)
namespace slm::AVX512 {
SLM_FOR_EACH_CPU_FILE(SLM_DECLARE)
}
#endif

namespace slm {

std::string cpu_capability() {
  const std::string best = at::get_cpu_capability();
#if defined(SLM_AVX512)
  if (best == "AVX512") return best;
#endif
#if defined(SLM_AVX2)
  if (best == "AVX512" || best == "AVX2") return "AVX2";
#endif
  return "DEFAULT";
}

}  // namespace slm

TORCH_LIBRARY_IMPL(slm, CPU, m) {
  const std::string level = slm::cpu_capability();
#if defined(SLM_AVX512)
#define SLM_REGISTER_AVX512(file) slm::AVX512::register_##file(m);
  if (level == "AVX512") {
    SLM_FOR_EACH_CPU_FILE(SLM_REGISTER_AVX512)
    return;
  }
#endif
#if defined(SLM_AVX2)
#define SLM_REGISTER_AVX2(file) slm::AVX2::register_##file(m);
  if (level == "AVX2") {
    SLM_FOR_EACH_CPU_FILE(SLM_REGISTER_AVX2)
    return;
  }
#endif
#define SLM_REGISTER_DEFAULT(file) slm::DEFAULT::register_##file(m);
  SLM_FOR_EACH_CPU_FILE(SLM_REGISTER_DEFAULT)
}
