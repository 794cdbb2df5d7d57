"""sample.py as a user runs it, on a model trained for a moment."""

import dataclasses

import pytest

import sample
from bpe import Tokenizer
from training import loop
from training.config import TrainConfig


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run of 20 steps: it babbles, but in whole characters."""
    from model import GPTConfig
    from training.config import with_vocabulary_of_data

    model = dataclasses.replace(GPTConfig.preset("quickstart"), n_layer=1, n_head=2, n_embd=32, block_size=48)
    config = TrainConfig(
        model=model, data=corpus, run=tmp_path_factory.mktemp("runs") / "babble", steps=20, batch_tokens=384,
        micro_batch=8, learning_rate=1e-2, warmup_steps=5, eval_batches=1, coherence_stories=3, device="cpu",
    )  # fmt: skip
    loop.train(with_vocabulary_of_data(config))
    return config.run


def tell(run, capsys, *flags: str) -> str:
    sample.main(["--run", str(run), "--max-new-tokens", "40", *flags])
    return capsys.readouterr().out


def test_samples_start_with_the_prompt(run, capsys):
    text = tell(run, capsys, "--prompt", "One day", "--num-samples", "2")
    assert text.count("One day") >= 2
    assert "--- sample 2 ---\nOne day" in text


def test_the_seed_decides(run, capsys):
    first = tell(run, capsys, "--seed", "5", "--temperature", "1.5")
    assert first == tell(run, capsys, "--seed", "5", "--temperature", "1.5")
    assert first != tell(run, capsys, "--seed", "6", "--temperature", "1.5")


def test_temperature_zero_is_greedy_and_so_is_top_one(run, capsys):
    greedy = tell(run, capsys, "--temperature", "0", "--num-samples", "1")
    assert greedy == tell(run, capsys, "--temperature", "0", "--num-samples", "1", "--seed", "9")
    assert greedy == tell(run, capsys, "--top-k", "1", "--num-samples", "1", "--temperature", "2")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--temperature", "-0.5"], "temperature is -0.5"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", "0"], "top_k is 0"),
        (["--num-samples", "0"], "num_samples is 0"),
        (["--prompt", "once upon a time " * 50], "give a shorter prompt"),
        (["--run", "no/such/run"], "holds no trained model"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_a_mistake_is_one_line(run, refused, flags, complaint):
    assert complaint in refused(sample.main, "--run", str(run), *flags)


def test_damaged_weights_are_refused_with_their_name(run, refused, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_bytes((run / "best" / "config.json").read_bytes())
    (tmp_path / "best" / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())
    assert "model.safetensors" in refused(sample.main, "--run", str(tmp_path))


def test_the_runs_tokenizer_is_the_datas(run, corpus):
    assert Tokenizer.load(run / "tokenizer.json").vocab == Tokenizer.load(corpus / "tokenizer.json").vocab
