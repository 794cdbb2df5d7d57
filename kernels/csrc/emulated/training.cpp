#include "../cuda/training.cu"
