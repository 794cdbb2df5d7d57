"""Attention inside documents that are packed one after another, by their cumulative lengths."""

import itertools

import torch
from torch import Tensor

from kernels.checks import check
from kernels.ops import causal_attention


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Return causal attention in which a token sees its own document only.

    q: (N, H, D), k and v: (N, Hkv, D): the tokens of all documents, without padding. ends: (documents + 1) int64 on the
    CPU, the cumulative lengths, from 0 to N; a document may be empty. scale and window as for causal_attention, which
    runs once for each document: work and memory grow with the sum of the squares of the lengths, not with N². Returns
    (N, H, D). ValueError that names the argument for anything else.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check(x.dim() == 3, f"{name} has shape {list(x.shape)}: it must be (N, H, D)")
    check(
        ends.device.type == "cpu" and ends.dtype == torch.int64 and ends.dim() == 1 and len(ends) >= 1,
        f"ends has shape {list(ends.shape)}, {ends.dtype} on {ends.device}: it must be (documents + 1) int64 on the "
        "CPU",
    )
    cut = ends.tolist()
    lengths = [after - before for before, after in itertools.pairwise(cut)]
    check(
        cut[0] == 0 and cut[-1] == len(q) and min(lengths, default=0) >= 0,
        f"ends goes from {cut[0]} to {cut[-1]}: it must rise from 0 to the {len(q)} tokens of q",
    )
    check(
        len(k) == len(v) == len(q),
        f"q, k and v have {len(q)}, {len(k)} and {len(v)} tokens: these must be equal",
    )
    parts = zip(
        *(x.split(lengths) for x in (q, k, v)), strict=True
    )  # of each document three of (length, H, D)
    found = [causal_attention(*(x[None] for x in part), scale=scale, window=window)[0] for part in parts]
    return torch.cat(found) if found else torch.empty_like(q)
