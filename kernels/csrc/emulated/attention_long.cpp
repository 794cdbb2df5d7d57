#include "../cuda/attention_long.cu"
