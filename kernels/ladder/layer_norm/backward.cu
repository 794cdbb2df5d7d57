// The rungs of layer norm's backward pass in one library; what ships is in shipped.cu.
#include "../call.cuh"
#include "backward_1_thread_per_row_and_column.cuh"
#include "backward_2_warp_per_row.cuh"
#include "backward_3_tiled_columns.cuh"
#include "backward_4_one_pass.cuh"
