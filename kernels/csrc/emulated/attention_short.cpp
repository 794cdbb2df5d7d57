#include "../cuda/attention_short.cu"
