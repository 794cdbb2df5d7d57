// The last rungs of attention, for the emulator: on a GPU the extension has them.
#include "backward_5_shipped.cuh"
#include "forward_7_shipped.cuh"
