// The rungs of attention's backward pass in one library; what ships is in shipped.cu.
#include "../call.cuh"
#include "backward_1_materialized.cuh"
#include "backward_2_recompute.cuh"
#include "backward_3_deterministic.cuh"
#include "backward_4_tensor_cores.cuh"
