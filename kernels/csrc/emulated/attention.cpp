#include "../cuda/attention.cu"
