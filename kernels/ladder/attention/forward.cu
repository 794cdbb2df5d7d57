// The rungs of attention's forward pass in one library; what ships is in shipped.cu.
#include "../call.cuh"
#include "forward_1_materialized.cuh"
#include "forward_2_online_softmax.cuh"
#include "forward_3_tensor_cores.cuh"
#include "forward_4_swizzle.cuh"
#include "forward_5_double_buffer.cuh"
#include "forward_6_only_what_is_seen.cuh"
