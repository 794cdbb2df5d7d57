"""A model and a run small enough to train in a second or two."""

import dataclasses
from pathlib import Path

import pytest

from model import GPTConfig
from training.config import TrainConfig, with_vocabulary_of_data


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> TrainConfig:
    """30 steps of a 2-layer model on the tiny corpus, with dropout, so that random states matter."""
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
