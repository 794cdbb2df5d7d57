// The rungs of layer norm's forward pass in one library; what ships is in shipped.cu.
#include "../call.cuh"
#include "forward_1_thread_per_row.cuh"
#include "forward_2_block_per_row.cuh"
#include "forward_3_warp_per_row.cuh"
#include "forward_4_row_in_registers.cuh"
