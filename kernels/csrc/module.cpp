// The Python module: loading it registers the ops; its attributes say what was built.
#include <pybind11/pybind11.h>

#include "build_info.h"  // written by setup.py
#include "ops.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("SOURCE_HASH") = SLM_SOURCE_HASH;
  m.attr("CUDA_ARCHITECTURES") = SLM_CUDA_ARCHITECTURES;
  m.attr("CUDA_OBSTACLE") = SLM_CUDA_OBSTACLE;  // why there are none
  m.attr("CPU_CAPABILITY") = slm::cpu_capability();
#if defined(_OPENMP)
  m.attr("THREADS") = "torch's threads";
#else
  m.attr("THREADS") = "one thread: the compiler has no OpenMP";
#endif
}
