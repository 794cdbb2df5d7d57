// The Python module itself: loading it registers the ops; its constants say what was built.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "build_info.h"  // written by setup.py

#define SLM_STRING_(text) #text
#define SLM_STRING(text) SLM_STRING_(text)
#define SLM_CONCAT_(a, b) a##b
#define SLM_CONCAT(a, b) SLM_CONCAT_(a, b)

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, SLM_STRING(TORCH_EXTENSION_NAME), nullptr, -1, nullptr};

PyMODINIT_FUNC SLM_CONCAT(PyInit_, TORCH_EXTENSION_NAME)() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  PyModule_AddStringConstant(module, "SOURCE_HASH", SLM_SOURCE_HASH);
  PyModule_AddStringConstant(module, "CUDA_ARCHITECTURES", SLM_CUDA_ARCHITECTURES);
#if defined(_OPENMP)
  PyModule_AddStringConstant(module, "THREADS", "torch's threads");
#else
  PyModule_AddStringConstant(module, "THREADS", "one thread: the compiler has no OpenMP");
#endif
#if defined(__AVX512F__)
  PyModule_AddStringConstant(module, "CPU_CAPABILITY", "AVX-512");
#elif defined(__AVX2__)
  PyModule_AddStringConstant(module, "CPU_CAPABILITY", "AVX2");
#elif defined(__ARM_NEON)
  PyModule_AddStringConstant(module, "CPU_CAPABILITY", "NEON");
#else
  PyModule_AddStringConstant(module, "CPU_CAPABILITY", "baseline");
#endif
  return module;
}
