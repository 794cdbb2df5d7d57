// The last rungs of layer norm, for the emulator: on a GPU the extension has them.
#include "backward_5_shipped.cuh"
#include "forward_5_shipped.cuh"
