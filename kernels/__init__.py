"""Fused layer norm and causal attention: C++ on the CPU, CUDA on the GPU, torch where neither is built.

    from kernels import layer_norm, add_layer_norm, causal_attention, causal_attention_qkvpacked

The two ops that decoding is made of, for the CPU, are in kernels.decode.

Which implementation runs is said by `backends()` and chosen by `use(...)`. What each op must compute stands
in reference.py; how it is derived and made fast, in docs/kernels/.
"""

from kernels.dispatch import backends, set_default, use
from kernels.ops import add_layer_norm, causal_attention, causal_attention_qkvpacked, layer_norm

__all__ = [
    "add_layer_norm",
    "backends",
    "causal_attention",
    "causal_attention_qkvpacked",
    "layer_norm",
    "set_default",
    "use",
]
