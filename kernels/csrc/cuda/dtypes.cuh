// The dtypes that kernels are compiled for.
#pragma once

#include "platform.cuh"

#define SLM_FOR_ALL_DTYPES(_) _(float) _(double) _(__half) _(__nv_bfloat16)
