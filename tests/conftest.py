"""What several rooms' tests share: a tiny corpus and the emulator, made once, and a check of one-line errors."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from kernels.workbench.emulator import Compiler

if TYPE_CHECKING:
    from training.config import TrainConfig

torch.set_num_threads(1)  # the models of the tests are so small that a second thread only costs


@pytest.fixture(autouse=True)
def same_start():
    """Begin every test with the same random numbers, and with denormal numbers, which a training before it forbade."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory) -> Compiler:
    """Compile the emulator once per run, however many processes share the tests."""
    base = tmp_path_factory.getbasetemp()
    return Compiler((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "emulator")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Return token files of 200 KB of built-in stories with 384 tokens of vocabulary."""
    from data.__main__ import main

    directory = tmp_path_factory.mktemp("tokens") / "stories"
    main(
        [
            "prepare",
            "--source",
            "stories",
            "--stories-bytes",
            "200000",
            "--vocab-size",
            "384",
            "--out",
            str(directory),
        ]
    )
    return directory


@pytest.fixture(scope="session")
def babble(corpus, tmp_path_factory) -> Path:
    """Return a run of 20 steps of a one-layer model: it babbles, but in whole characters."""
    from model import GPTConfig
    from training import loop
    from training.config import TrainConfig, with_vocabulary_of_data

    model = dataclasses.replace(GPTConfig.preset("quickstart"), n_layer=1, n_head=2, n_embd=32, block_size=48)
    config = TrainConfig(
        model=model, data=corpus, run=tmp_path_factory.mktemp("runs") / "babble", steps=20, batch_tokens=384,
        micro_batch=8, learning_rate=1e-2, warmup_steps=5, eval_batches=1, coherence_stories=3, device="cpu",
    )  # fmt: skip
    loop.train(with_vocabulary_of_data(config))
    return config.run


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> "TrainConfig":
    """30 steps of a 2-layer model on the tiny corpus, with dropout, so that random states matter."""
    from model import GPTConfig
    from training.config import TrainConfig, with_vocabulary_of_data

    model = dataclasses.replace(
        GPTConfig.preset("quickstart"), n_layer=2, n_head=2, n_embd=32, block_size=32, dropout=0.1
    )
    config = TrainConfig(
        model=model,
        data=corpus,
        run=tmp_path / "run",
        steps=30,
        batch_tokens=512,
        micro_batch=8,
        learning_rate=1e-2,
        warmup_steps=5,
        eval_every=15,
        eval_batches=2,
        checkpoint_every=10,
        coherence_stories=4,
        device="cpu",
    )
    return with_vocabulary_of_data(config)


@pytest.fixture
def refused(capsys):
    """Call main(argv) and return its error: one line on stderr, exit code 2."""

    def call(main, *argv: str) -> str:
        capsys.readouterr()  # what was said before does not count
        with pytest.raises(SystemExit) as stop:
            main(list(argv))
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call
