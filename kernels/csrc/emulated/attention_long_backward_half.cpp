#include "../cuda/attention_long_backward_half.cu"
