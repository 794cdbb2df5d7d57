#include "../cuda/attention_long_forward.cu"
