"""The benchmark of a training step: what its rows say, and that it trains the peer's own model when given one."""

import json

import pytest
import torch

from benchmarks import step
from model import GPT, accounting

# As much of nanoGPT's interface as the benchmark calls.
PEER = """
import dataclasses, torch

@dataclasses.dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx, targets):
        print("the peer's forward")
        logits = self.table(idx)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
"""


def test_ours_and_a_peer_from_a_folder_take_turns(tmp_path, capsys):
    (tmp_path / "model.py").write_text(PEER)
    step.main([
        "--models", "tiny", "--no-compile", "--steps", "2", "--device", "cpu",
        "--nanogpt", str(tmp_path), "--json", str(tmp_path / "s.json"),
    ])  # fmt: skip
    assert capsys.readouterr().out.count("the peer's forward") == 2 * (step.WARM_UP + 2)  # passes, steps
    rows = {row["name"]: row for row in json.loads((tmp_path / "s.json").read_text())["rows"]}
    assert set(rows) == {"step tiny", "step tiny, utilization", "step tiny, nanoGPT's utilization"}
    assert rows["step tiny"]["peer"] == "nanoGPT" and rows["step tiny"]["ours"] > 0


@pytest.mark.parametrize("broken", ["ours", "plain torch GPT"])
def test_a_side_that_fails_costs_its_own_rows_only(broken, tmp_path, monkeypatch, refused):
    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(step, "ours" if broken == "ours" else "plain", fails)
    target = tmp_path / "s.json"
    said = refused(
        step.main,
        "--models",
        "tiny",
        "--no-compile",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--json",
        str(target),
    )
    assert f"not all sides could run: tiny, {broken}: CUDA out of memory" in said
    rows = {row["name"]: row["ratio"] for row in json.loads(target.read_text())["rows"]}
    if broken == "ours":
        assert set(rows) == {"step tiny, plain torch GPT's utilization"}
    else:
        assert set(rows) == {"step tiny", "step tiny, utilization"} and rows["step tiny"] is None


def test_a_step_moves_the_weights_of_each_side_by_the_same_gradient(monkeypatch):
    monkeypatch.setattr(step, "precision_on", lambda device: torch.float32)
    torch.manual_seed(0)
    model, device = step.MODELS["tiny"], torch.device("cpu")
    ours, plain = step.ours(model, device, False), step.plain(model, device, False)
    for one, other in zip(ours.parameters, plain.parameters, strict=True):
        other.data.copy_(one.data)
    before = [x.clone() for x in ours.parameters]
    x, y = torch.randint(
        model.config.vocab_size, (2, model.passes, model.micro_batch, model.config.block_size)
    )
    seen = []
    for side in (ours, plain):
        side.step(x, y, lambda parameters, limit: seen.append([p.grad.clone() for p in parameters]))
    assert any(not torch.equal(one, other) for one, other in zip(before, ours.parameters, strict=True))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", step.MODELS)
def test_every_model_has_whole_passes_and_an_optimizer(name):
    model = step.MODELS[name]
    assert model.passes * model.micro_batch * model.config.block_size == model.step_tokens
    with torch.device("meta"):
        gpt = GPT(model.config)
    adamw = model.optimizer(gpt, torch.device("cpu"))
    held = sum(p.numel() for group in adamw.param_groups for p in group["params"])
    assert held == accounting.parameters(model.config)["total"]


def test_the_rows_say_speed_utilization_and_memory_with_their_goals():
    medians = {"ours": 2.0, "ours, compiled": 1.0, "nanoGPT": 1.5}
    memory = {"ours": 30e6, "ours, compiled": 20e6, "nanoGPT": 40e6}
    rows = {row.name: row for row in step.rows("gpt2-124m", medians, memory, ("datasheet", 989e12))}
    best = rows["step gpt2-124m, compiled"]
    assert (best.ours, best.ratio, best.goal) == (524288, 1.5, 1.2)
    memory_row = rows["step gpt2-124m, compiled, peak memory"]
    # The goal is at most 0.8 times the peer's.
    assert (memory_row.ours, memory_row.ratio, memory_row.goal) == (20, 2, 1.25)
    used = 524288 * sum(accounting.flops_per_token(step.MODELS["gpt2-124m"].config).values()) / 1e12
    utilization = rows["step gpt2-124m, compiled, utilization"]
    assert utilization.ratio == pytest.approx(used / 989) and utilization.goal == 0.45
    assert rows["step gpt2-124m"].goal is None and rows["step gpt2-124m"].ratio == 0.75
    assert "step gpt2-124m, nanoGPT's utilization" in rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models", "gpt5"], "there is no 'gpt5'"),
        (["--steps", "0"], "steps is 0"),
        (["--nanogpt", "no/such"], "holds no model.py"),
    ],
)
def test_mistakes_are_one_line(refused, arguments, message):
    assert message in refused(step.main, *arguments)
