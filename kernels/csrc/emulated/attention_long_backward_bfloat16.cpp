#include "../cuda/attention_long_backward_bfloat16.cu"
