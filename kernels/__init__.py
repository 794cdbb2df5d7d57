"""The fused ops of a transformer: C++ on the CPU, CUDA on the GPU, torch where neither is built.

    from kernels import layer_norm, add_layer_norm, causal_attention, causal_attention_qkvpacked

The two ops that decoding is made of, for the CPU, are in kernels.decode.

Attention and rotary positions are in attention.py, all other ops in ops.py. `backends()` says which implementations
are built, `runs_on(device_type)` which one runs, and `use(...)` chooses. What each op must compute is in
reference.py; how it is derived and made fast, in docs/kernels/.
"""

from kernels.attention import causal_attention, causal_attention_qkvpacked, document_attention, rotary
from kernels.dispatch import backends, runs_on, set_default, use
from kernels.ops import (
    adamw_,
    add_layer_norm,
    add_rms_norm,
    gelu,
    layer_norm,
    linear_cross_entropy,
    rms_norm,
    swiglu,
)

__all__ = [
    "adamw_",
    "add_layer_norm",
    "add_rms_norm",
    "backends",
    "causal_attention",
    "causal_attention_qkvpacked",
    "document_attention",
    "gelu",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "rotary",
    "runs_on",
    "set_default",
    "swiglu",
    "use",
]
