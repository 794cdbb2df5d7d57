"""Small ragged inputs for each program of programs.py, chosen so that every line of the kernels matters.

tests/emulator/test_kernels.py requires that the kernels pass them; the mutation test, that every mutant fails one.
"""

import math

from kernels.workbench.trials import Attention, Case, Norm, Step, Turn

POISONED_ROWS = [
    Norm(5, 48, residual=True, poisoned="x"),
    Norm(5, 48, residual=True, poisoned="residual", poison=math.inf),
    Norm(5, 7, residual=True, poisoned="grad_out", poison=-math.inf),
    Norm(5, 48, residual=True, poisoned="grad_residual"),
]
NORMS = [
    Norm(3, 7),
    Norm(11, 48, residual=True),
    Norm(5, 384, bias=False),
    Norm(9, 24, gap=8, residual=True),
    Norm(3, 16, gap=3),
    *(Norm(3, 48, residual=True, unaligned=name) for name in ("x", "residual", "grad_out", "grad_residual")),
    *(Norm(3, 48, residual=True, unaligned=name) for name in ("weight", "bias")),
    *(
        Norm(2, columns, residual=columns % 512 != 0)
        for columns in (136, 264, 392, 520, 776, 1024, 1032, 1544, 2048)
    ),
    Norm(2, 4096),
    Norm(2, 1025, residual=True),
    Norm(70, 40),
    Norm(130, 5),
    Norm(300, 8, sm_count=10),  # more lines of partial sums than a block has rows
    Norm(2200, 3, sm_count=10),
    Norm(0, 48),
    *POISONED_ROWS,
]
# A weight whose random bits are exactly the threshold is dropped: here those of query 20, key 2 and query 22, key 19.
AT_THE_THRESHOLD = [Attention(1, 33, 1, 16, dropout_p=1 - bits / 65536) for bits in (59252, 47023)]
ONE_HOT = Attention(1, 70, 4, 32, spread=200.0)  # rows whose scores are all far below zero
SHORT = [
    Attention(1, 40, 2, 24),
    Attention(2, 97, 2, 32, window=18, dropout_p=0.3),  # a tile with one visible corner
    Attention(2, 97, 2, 64, window=20, dropout_p=0.3),
    Attention(1, 17, 1, 96, spread=4.0),
    Attention(1, 128, 1, 32, transposed=True),
    Attention(1, 100, 1, 128, dropout_p=0.1),
    Attention(1, 1, 1, 8),
    Attention(1, 65, 2, 40, window=16, scale=0.5, transposed=True),
    Attention(1, 64, 1, 16, window=1),
    Attention(1, 100, 1, 16, window=31),  # the oldest visible key is the last of a tile
    *AT_THE_THRESHOLD,
]
LONG = [
    Attention(1, 70, 2, 24, kv_heads=1),
    Attention(2, 130, 2, 32, kv_heads=1, window=66, dropout_p=0.2),
    Attention(2, 130, 2, 64, kv_heads=1, window=66, dropout_p=0.2),
    Attention(1, 200, 1, 96, spread=4.0),
    Attention(1, 257, 1, 32, transposed=True),
    Attention(1, 129, 1, 128, dropout_p=0.1),
    Attention(1, 1, 1, 8),
    Attention(1, 193, 1, 40, window=64, scale=0.5),
    Attention(1, 300, 1, 32, window=95),
    Attention(1, 150, 1, 16, window=1),
    Attention(1, 270, 1, 128, window=200),
    *AT_THE_THRESHOLD,
]
LONG_IN_ANY_ORDER = [
    Attention(1, 70, 2, 24, kv_heads=1, any_order=True),
    Attention(2, 130, 2, 64, kv_heads=1, window=70, dropout_p=0.2, any_order=True),
    Attention(1, 97, 1, 96, window=31, transposed=True, any_order=True),
    Attention(1, 150, 1, 16, window=1, any_order=True),
    Attention(1, 270, 1, 128, window=200, any_order=True),
]
# A token that is not finite: in a row that others see, and that others of its tile do not see.
POISONED = [
    *(Attention(1, 70, 2, 24, poisoned=name, token=40) for name in ("q", "k", "v", "grad_out")),
    Attention(1, 70, 1, 16, poisoned="v", poison=math.inf, token=63, dropout_p=0.2),
    Attention(1, 90, 1, 16, window=20, poisoned="k", poison=math.inf, token=47),
]
# The first query, which sees one key, gives it no weight.
WEIGHTLESS = Attention(1, 70, 1, 16, poisoned="k", poison=-math.inf, token=0)
LONG_POISONED = [
    Attention(1, 150, 1, 32, poisoned=name, token=token, any_order=any_order)
    for name, token, any_order in (
        ("k", 63, False),
        ("q", 95, True),
        ("k", 80, True),
        ("grad_out", 127, False),
    )
]
# An empty document, one of a single token, tiles that are full, ragged, and alone in their document.
DOCUMENTS = [
    Attention(1, 150, 2, 24, kv_heads=1, ends=(0, 33, 33, 34, 98, 150)),
    Attention(1, 161, 1, 32, window=20, dropout_p=0.3, ends=(0, 64, 128, 161), transposed=True),
    Attention(1, 40, 1, 8, ends=(0, 0, 40, 40)),
    Attention(1, 70, 2, 16, poisoned="v", token=30, ends=(0, 31, 70)),
]
LONG_DOCUMENTS = [
    *DOCUMENTS,
    Attention(1, 300, 1, 128, ends=(0, 131, 300)),
    Attention(1, 260, 2, 64, kv_heads=1, ends=(0, 5, 200, 260), any_order=True),
]
SIMPLE = [
    Attention(1, 40, 2, 20, kv_heads=1),
    Attention(2, 45, 2, 28, window=20, dropout_p=0.3),
    Attention(1, 65, 1, 96, spread=2.0, transposed=True),
    Attention(1, 33, 4, 128, kv_heads=2, dropout_p=0.1),
    Attention(1, 1, 1, 1),
    Attention(1, 97, 1, 33, window=33, scale=-0.5),
    Attention(1, 96, 1, 8, window=1),
    AT_THE_THRESHOLD[0],
    Attention(1, 40, 1, 40, poisoned="v", token=35, column=3),  # not the last number of a thread
    Attention(1, 40, 1, 128, poisoned="v", token=35),  # rows that are computed again with all columns
]
RMS_NORMS = [
    Norm(3, 7),
    Norm(11, 48, residual=True),
    Norm(5, 384),
    Norm(9, 24, gap=8, residual=True),
    Norm(3, 16, gap=3),
    *(
        Norm(3, 48, residual=True, unaligned=name)
        for name in ("x", "residual", "grad_out", "grad_residual", "weight")
    ),
    Norm(2, 1025, residual=True),
    Norm(130, 33),
    Norm(0, 48),
    *POISONED_ROWS,
]
BENT = [
    *(Norm(3, 7), Norm(9, 24, gap=8), Norm(5, 40, bias=False), Norm(130, 33), Norm(1, 129), Norm(300, 3)),
    *(
        Norm(0, 5),
        Norm(2300, 3),
        Norm(1, 4100),
    ),  # no rows; more than the lines of partial sums, or the grid, hold
    *(Norm(5, 33, poisoned=name) for name in ("gate", "x", "grad_out")),
    Norm(5, 33, poisoned="gate", poison=math.inf),
]
LOGITS = [
    # rows end before their first pack of 16 bytes; a thread has several packs
    *(Norm(5, 3), Norm(2, 4101)),
    *(Norm(3, 7), Norm(2, 300), Norm(5, 1025), Norm(1, 1), Norm(0, 9)),
    *(Norm(3, 300, poisoned="logits", poison=value) for value in (math.nan, math.inf, -math.inf)),
]
TURNS = [
    *(
        Turn(2, 3, 2, 8),
        Turn(2, 5, 3, 2, shared=False),
        Turn(1, 4, 2, 6, back=True),
        Turn(2, 7, 3, 4, transposed=True),
    ),
    *(Turn(1, 17, 2, 256, poisoned=True), Turn(0, 3, 2, 8)),
]
STEPS = [
    Step((3, 4096, 5, 4097)),
    Step((1,) * 96),
    Step((8192, 300)),
    Step((0,)),
    Step((7, 33), poisoned=True),
]
GROUPED = Attention(2, 33, 4, 16, kv_heads=2)
CASES: dict[str, list[Case]] = {
    "layer_norm_forward": NORMS,
    "layer_norm_backward": NORMS,
    "rms_norm_forward": RMS_NORMS,
    "rms_norm_backward": RMS_NORMS,
    "gelu_backward": BENT,
    "gelu_erf_backward": BENT,
    "swiglu_forward": BENT,
    "swiglu_backward": BENT,
    "cross_entropy": LOGITS,
    "rotary": TURNS,
    "adamw": STEPS,
    "attention_short_forward": [*SHORT, GROUPED, ONE_HOT, *POISONED],
    "attention_short_backward": SHORT + POISONED,
    "attention_long_forward": [*LONG, ONE_HOT, *POISONED, WEIGHTLESS, *LONG_DOCUMENTS],
    "attention_long_backward": LONG + LONG_IN_ANY_ORDER + POISONED + LONG_POISONED + LONG_DOCUMENTS,
    "attention_simple_forward": SIMPLE + POISONED + DOCUMENTS,
    "attention_simple_backward": SIMPLE + POISONED + DOCUMENTS,
}
