// Attention by whichever kernels attention.cu chooses, for a program that sets SLM_KERNELS to this file.
#include "attention_long_backward.cuh"
#include "attention_long_forward.cuh"
#include "attention_short_backward.cuh"
#include "attention_short_forward.cuh"
#include "attention_simple.cuh"
#include "attention.cu"
