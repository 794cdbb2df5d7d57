// Every kind of warp operation once, for the trace.
#include "platform.cuh"

// x (64) -> out (64)
__global__ void all_kinds(const double* x, double* out) {
    const int thread = threadIdx.x;
    const unsigned mask = 0xffffffff;
    double sum = __shfl_xor_sync(mask, x[thread], 1);                      // shuffle
    sum += __ballot_sync(mask, thread % 2);                                // ballot
    sum += __any_sync(mask, thread == 3);                                  // any
    sum += __all_sync(mask, thread != 3);                                  // all
    sum += __match_any_sync(mask, thread % 4);                             // match
    sum += __match_any_sync(mask, static_cast<long long>(thread) << 32);   // match_long
    sum += __reduce_add_sync(mask, -thread);                               // reduce
    sum += __activemask();                                                 // active
    __syncwarp();                                                          // sync
    out[thread] = sum;
}

extern "C" void run_all_kinds(void** tensors, const long long*) {
    launch(all_kinds, dim3(1), dim3(64), 0, nullptr, static_cast<const double*>(tensors[0]),
           static_cast<double*>(tensors[1]));
}
