#include "../cuda/attention_simple.cu"
