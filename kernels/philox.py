"""Random numbers of attention dropout: Philox 4x32-10 with the position as counter, so that no mask is stored.

Parallel Random Numbers: As Easy as 1, 2, 3, Salmon et al. 2011: a bijection of a 128-bit counter under a
64-bit key. The key is the seed; the counter is the place of a weight. Forward, backward, any tile size and
any device thus find the same bits. One call serves eight weights: those of rows r, r + 8 and columns c, c + 8,
c + 16, c + 24 of a tile of 16 x 32, which belong to one thread in a tensor core's fragments, whether the scores
are computed as they are or transposed.

csrc/philox.h is the C++ version.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: increments of the key
ROUNDS = 10


def keep_threshold(dropout_p: float) -> int:
    """Return the threshold below which a weight's 16 bits keep it: round((1 - p) * 65536), at least 1.

    Kept weights are divided by threshold / 65536, the exact probability of keeping one.

    >>> keep_threshold(0.25), keep_threshold(0.1)
    (49152, 58982)
    """
    return max(1, int((1 - dropout_p) * 65536 + 0.5))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> list[Tensor]:
    """Return four 32-bit numbers, as int64 tensors, for each counter of four 32-bit numbers."""
    x = [word.long() for word in counter]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(ROUNDS):
        high, low = zip(*(_multiply(x[2 * i], _MULTIPLIERS[i]) for i in range(2)), strict=True)
        x = [high[1] ^ x[1] ^ key[0], low[1], high[0] ^ x[3] ^ key[1], low[0]]
        key = [(part + step) & _MASK for part, step in zip(key, _WEYL, strict=True)]
    return x


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of the product of 32-bit numbers (int64 wraps, but keeps all 64 bits)."""
    product = a * b
    return product >> 32 & _MASK, product & _MASK


def bits(seed: int, batch: int, heads: int, length: int) -> Tensor:
    """Return (B, H, T, T): the 16 random bits of every weight, as int64 on the CPU."""
    b, h, row, column = torch.meshgrid(
        *(torch.arange(size) for size in (batch, heads, length, length)), indexing="ij"
    )
    words = torch.stack(philox((column // 32 * 8 + column % 8, row // 16 * 8 + row % 8, h, b), seed))
    word = row % 16 // 8 * 2 + column % 32 // 16
    half = column % 16 // 8
    return words.gather(0, word[None])[0] >> 16 * half & 0xFFFF
