"""One process of several: python worker.py CASES.json, with RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR set.

CASES.json lists runs, one after another: {"argv": flags of train.py, "port": …, "leave_at": a step or null,
"leaving": the ranks that end there, as if killed; by default 1}.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

torch.set_num_threads(1)

import train as train_script  # noqa: E402
from inference import devices  # noqa: E402
from training import loop, optimizer  # noqa: E402

RANK = int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Train in float64, weights and products alike: a sum in another order then differs by 1e-16 of itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    chosen = {
        "choose_precision": lambda name, device: torch.float64,
        "autocast": lambda device, precision: contextlib.nullcontext(),
    }
    try:
        with mock.patch.multiple(devices, **chosen):
            yield
    finally:
        torch.set_default_dtype(before)


def note_memory(trainer: loop.Trainer) -> None:
    size = optimizer.state_bytes(trainer.optimizers)
    trainer.run.with_name(f"{trainer.run.name}.bytes-{RANK}").write_text(str(size))


def leave_at(step: int | None, leaving_ranks: list[int]) -> None:
    """Make some processes end without a word when that step begins."""
    original = loop.Trainer.step

    def leaving(trainer, batch):
        if RANK in leaving_ranks and trainer.progress.step == step:
            os._exit(9)
        return original(trainer, batch)

    loop.Trainer.step = leaving


def main() -> None:
    finish = loop.Trainer.finish

    def note_and_finish(trainer, bar):
        note_memory(trainer)
        return finish(trainer, bar)

    loop.Trainer.finish = note_and_finish
    for case in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(case["port"])
        leave_at(case.get("leave_at"), case.get("leaving", [1]))
        with in_float64():
            train_script.main(case["argv"])


if __name__ == "__main__":
    main()
