// The rungs of cross-entropy in one library; what ships is in shipped.cu.
#include "../call.cuh"
#include "loss_1_thread_per_row.cuh"
#include "loss_2_block_per_row.cuh"
#include "loss_3_online_sum.cuh"
#include "loss_4_packs.cuh"
