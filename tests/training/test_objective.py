"""Another objective than pretraining: batches of another shape, losses over unequal numbers of tokens."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

from data.batches import Documents, Sampler
from training import loop
from training.pretraining import Pretraining


@dataclasses.dataclass(frozen=True)
class Answers:
    """Instruction data: `learned` marks the targets that count."""

    ids: torch.Tensor  # (B, T) int64
    targets: dict[str, torch.Tensor]  # "next" (B, T) int64 and "learned" (B, T) bool


class Answering(Pretraining):
    """Learn only the marked tokens; a row may have none."""

    def loss(self, model, batch: Answers):
        wanted = batch.targets["next"].masked_fill(~batch.targets["learned"], -100)
        return model(batch.ids, wanted)[1]

    def weight(self, batch: Answers):
        return batch.targets["learned"].sum().item()


def answers(trainer: loop.Trainer) -> Answers:
    """Rows of which each has another number of marked tokens, and the first eight none."""
    x, y = next(trainer.batches)  # (16, T)
    marked = torch.arange(x.shape[1]) < torch.arange(-8, 8)[:, None]  # (T,), (16, 1) -> (16, T)
    return Answers(x, {"next": y, "learned": marked})


@pytest.mark.parametrize("micro_batch", [16, 8, 4, 1])
def test_the_gradient_is_that_of_the_mean_over_all_marked_tokens(tiny, micro_batch):
    model = dataclasses.replace(tiny.model, dropout=0.0)
    config = dataclasses.replace(
        tiny, model=model, precision="float32", micro_batch=micro_batch, batch_tokens=512, optimizer="ours"
    )
    trainer = loop.Trainer(config, Answering(config))
    batch = answers(trainer)
    logits, _ = trainer.model(batch.ids)
    marked = batch.targets["learned"]
    expected = F.cross_entropy(logits[marked], batch.targets["next"][marked])
    gradients = torch.autograd.grad(expected, trainer.parameters)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    step = trainer.step(batch)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-4)


class Counting(Sampler):
    """Endless rows of increasing numbers, to show that a run goes through any objective's batches and resumes."""

    first = 0

    def __next__(self):
        rows = torch.arange(self.first, self.first + self.batch_size)[:, None]  # (B, 1)
        self.first += self.batch_size
        ids = (rows + torch.arange(self.block_size + 1)) % 300  # (B, T + 1)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def position(self):
        return {"first": self.first}

    def seek(self, position):
        self.first = position["first"]


class CountOn(Pretraining):
    """Counting instead of stories, with its own figures in the log."""

    def open(self, batching, processes):
        super().open(batching, processes)
        return Counting(self.train_file, batching.rows, self.config.model.block_size)

    def estimate(self, model, batches, *, val_only=False):
        rows = (torch.arange(4)[:, None] * 7 + torch.arange(33)) % 300  # (4, T + 1)
        with torch.no_grad():
            loss = model(rows[:, :-1], rows[:, 1:])[1].item()
        return {"val_loss": loss, "accuracy": 0.5}

    def sample(self, model):
        return {"answer": "one two three"}


def test_a_run_learns_another_objective_and_logs_its_figures(tiny):
    config = dataclasses.replace(tiny, steps=20, checkpoint_every=10, eval_every=10)
    loop.train(config, CountOn)
    records = loop.watch.read_log(config.run / "log.jsonl")
    evaluations = [record for record in records if "val_loss" in record]
    assert [(r["accuracy"], r["answer"]) for r in evaluations] == [(0.5, "one two three")] * 2
    assert evaluations[1]["val_loss"] < evaluations[0]["val_loss"]
    with pytest.raises(ValueError, match="the saved data position is one of Counting"):
        loop.train(dataclasses.replace(config, steps=30, resume=True))


def loss_alone(model, batch, end: int) -> float:
    """Return the mean loss of the documents of packed rows, each given to the model alone."""
    sums, count = 0.0, 0
    for row, targets in zip(*(side.tolist() for side in batch), strict=True):
        documents = itertools.groupby(zip(row, targets, strict=True), key=Counted(end))
        for pairs in (list(pairs) for _, pairs in documents):
            ids, wanted = (torch.tensor(side)[None] for side in zip(*pairs, strict=True))  # 2 × (1, T)
            learned = wanted != -100
            logits, _ = model(ids)
            sums += F.cross_entropy(logits[learned], wanted[learned], reduction="sum").item()
            count += int(learned.sum())
    return sums / count


def packed(tiny) -> loop.Trainer:
    model = dataclasses.replace(tiny.model, dropout=0.0, block_size=512)  # two or three stories
    rows = {"micro_batch": 2, "batch_tokens": 1024}
    config = dataclasses.replace(tiny, model=model, batches="packed", precision="float32", **rows)
    return loop.Trainer(config)


def test_packed_documents_are_learned_as_if_each_were_alone(tiny):
    trainer = packed(tiny)
    x, y = next(trainer.batches)
    end = trainer.objective.train_file.meta.end_of_text
    expected = loss_alone(trainer.model, (x, y), end)
    assert max(row.count(end) for row in y.tolist()) > 1
    assert trainer.step((x, y)).loss.item() == pytest.approx(expected, rel=1e-5)


def test_packed_documents_are_judged_as_if_each_were_alone(tiny):
    trainer = packed(tiny)
    for _ in range(20):  # before it has learned anything, what a document sees makes no difference
        trainer.step(next(trainer.batches))
    file = trainer.objective.train_file
    rows = Documents(file, trainer.config.micro_batch, trainer.config.model.block_size)
    batch = [torch.cat(side) for side in zip(*itertools.islice(rows, 2), strict=True)]  # x, y: 2 × (2 B, T)
    expected = loss_alone(trainer.model, batch, file.meta.end_of_text)
    assert max(row.count(file.meta.end_of_text) for row in batch[1].tolist()) > 1
    found = trainer.objective.estimate(trainer.model, 2)["train_loss"]
    assert found == pytest.approx(expected, rel=1e-5)


class Counted:
    """Number the documents of a row of (id, target) pairs: each ends with the target `end`."""

    def __init__(self, end: int) -> None:
        self.end, self.number, self.ended = end, 0, False

    def __call__(self, pair: tuple[int, int]) -> int:
        self.number += self.ended
        self.ended = pair[1] == self.end
        return self.number
