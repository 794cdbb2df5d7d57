"""The same ops in Triton: a block of a tensor is one value, and the compiler deals it out to threads.

    layer_norm.py      a row is one block; the gradients of weight and bias are partial sums of groups of rows
    rms_norm.py        the same without a mean
    cross_entropy.py   a row of logits in pieces, its maximum and sum taken together
    attention.py       FlashAttention-2, forward and backward: the tiles of csrc/cuda, without their lanes

They are for reading and for comparing with csrc/cuda; `kernels.use` does not choose them. Triton is optional (pip
install triton). Without a GPU, TRITON_INTERPRET=1 in the environment runs them on the CPU, one block after another:
tests/kernels/test_triton.py does.
"""
