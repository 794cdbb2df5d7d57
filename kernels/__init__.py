"""Fused layer norm and causal attention: C++ on the CPU, CUDA on the GPU, torch where neither is built.

    from kernels import layer_norm, add_layer_norm, causal_attention, causal_attention_qkvpacked

The two ops that decoding is made of, for the CPU, are in kernels.decode.

`backends()` says which implementations are built, `runs_on(device_type)` which one runs, and `use(...)` chooses. What
each op must compute is in reference.py; how it is derived and made fast, in docs/kernels/.
"""

from kernels.dispatch import backends, runs_on, set_default, use
from kernels.ops import add_layer_norm, causal_attention, causal_attention_qkvpacked, layer_norm

__all__ = [
    "add_layer_norm",
    "backends",
    "causal_attention",
    "causal_attention_qkvpacked",
    "layer_norm",
    "runs_on",
    "set_default",
    "use",
]
