"""basics/train.py against torch's loss, optimizer and clipping, and training/ against basics/train.py."""

import copy
import runpy

import pytest
import torch
from torch import nn

import kernels
from basics import gpt, sample, train
from training import optimizer


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 11))


def gradients(model: nn.Module, step: int) -> None:
    model.zero_grad()
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()


def test_a_batch_is_windows_and_what_comes_next():
    ids = torch.arange(100)
    x, y = train.get_batch(ids, 5, 7, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (5, 7)
    assert torch.equal(y, x + 1)
    assert len(set(x[:, 0].tolist())) > 1
    x, y = train.get_batch(ids[:8], 50, 7, torch.Generator().manual_seed(0))  # one window only
    assert x.unique().tolist() == list(range(7)) and y.max() == 7


def test_cross_entropy_equals_torchs_and_the_fast_rooms():
    hidden, weight = torch.randn(2, 30, 8).flatten(0, 1), torch.randn(50, 8)
    targets = torch.randint(50, (60,))
    logits = (hidden @ weight.T * 100).requires_grad_()
    loss = train.cross_entropy(logits, targets)
    expected = nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, expected)))
    torch.testing.assert_close(kernels.linear_cross_entropy(hidden * 100, weight, targets), loss.detach())


@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_adamw_takes_the_same_steps(kind):
    plain, other = small_model(), small_model()
    ours = train.AdamW(plain.parameters())
    groups = optimizer.parameter_groups(other.parameters(), 0.1)
    adamw = {"torch": torch.optim.AdamW, "ours": optimizer.AdamW}[kind](groups, betas=(0.9, 0.95))
    for step in range(50):
        rate = 1e-2 * (1 + step % 3)
        gradients(plain, step)
        gradients(other, step)
        ours.step(rate)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    for mine, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_equals_torchs_and_the_fast_rooms(limit):
    plain, theirs, fast = small_model(), small_model(), small_model()
    for model in (plain, theirs, fast):
        gradients(model, 0)
    train.clip_gradient(list(plain.parameters()), limit)
    nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    optimizer.clip_gradient(list(fast.parameters()), limit)
    for mine, other, third in zip(plain.parameters(), theirs.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
        torch.testing.assert_close(mine.grad, third.grad)


def test_the_rate_rises_and_falls():
    rates = [train.learning_rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(3e-3) and rates.index(max(rates)) in (49, 50)
    assert rates[0] == pytest.approx(3e-3 / 50) and rates[-1] == pytest.approx(3e-4, rel=1e-3)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_it_learns_a_text_by_heart():
    text = b"abcdefghijklmnopqrstuvwxyz" * 20
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(block_size=24, n_layer=1, n_head=2, n_embd=32))
    start = copy.deepcopy(model.state_dict())
    train.train(model, torch.tensor(list(text)), steps=100, batch_size=8)
    assert any(not torch.equal(start[name], value) for name, value in model.state_dict().items())
    assert bytes(sample.generate(model, list(text[:3]), 40, temperature=0)) == text[3:43]


def test_the_programs_run_on_a_text(tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.txt"
    path.write_text("the cat sat on the mat. " * 20)
    run(
        train, ["train.py", str(path)], monkeypatch, train=lambda model, ids: train.train(model, ids, steps=2)
    )
    assert (tmp_path / "my.safetensors").is_file()
    run(sample, ["sample.py", str(path), "the cat"], monkeypatch)
    assert capsys.readouterr().out.count("--- temperature") == 3


def run(program, argv, monkeypatch, **replaced):
    """Run a file as a script, with short texts and with some of its functions replaced."""
    monkeypatch.setattr("sys.argv", argv)
    namespace = runpy.run_path(program.__file__)["main"].__globals__

    def few(model, ids, count, *args, **rules):
        return sample.generate(model, ids, 5, *args, **rules)

    for name, value in {"generate": few, **replaced}.items():
        monkeypatch.setitem(namespace, name, value)
    namespace["main"]()


@pytest.mark.parametrize("file", [train.__file__, sample.__file__, gpt.__file__])
def test_without_a_text_the_programs_say_how_they_are_used(file, monkeypatch):
    monkeypatch.setattr("sys.argv", [file])
    with pytest.raises(SystemExit, match="usage: python basics/"):
        runpy.run_path(file, run_name="__main__")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "my.txt").write_text("short")
    monkeypatch.setattr("sys.argv", ["train.py", str(tmp_path / "my.txt")])
    with pytest.raises(SystemExit, match="has 5 bytes: give a text of more than 64"):
        runpy.run_path(train.__file__, run_name="__main__")
    with pytest.raises(SystemExit, match=r"there is no .*my\.safetensors: python basics/train\.py"):
        runpy.run_path(sample.__file__, run_name="__main__")
