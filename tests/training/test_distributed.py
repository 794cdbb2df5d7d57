"""Several gloo processes against one: the same losses, the same weights, half the memory, and nothing lost.

All train in float64, because what float32 rounds off differs between them, and AdamW makes it grow: from 1e-7 to
3e-5 of the loss in fifty steps, on some processors.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train as train_script
from model import GPT
from tests.training.worker import in_float64
from training import distributed, watch

ROOT = Path(__file__).parents[2]
MODEL = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --kernels torch"
RUN = (
    "--batch-tokens 512 --micro-batch 4 --eval-every 50 --eval-batches 2 --coherence-stories 1 --device cpu "
    "--precision float32 --batches random --warmup-steps 2 --schedule constant --learning-rate 3e-3"
)
KINDS = {
    "naive": "--optimizer ours --ddp naive",
    "bucketed": "--optimizer ours --ddp bucketed",
    "torch": "--optimizer ours --ddp torch",
    "optimizer": "--optimizer ours --shard optimizer",
    "full": "--optimizer ours --shard full",
    "full-by-hand": "--optimizer ours --shard full --fsdp ours",
    "muon-optimizer": "--optimizer muon --shard optimizer",
    "muon-full": "--optimizer muon --shard full",
    "muon-full-by-hand": "--optimizer muon --shard full --fsdp ours",
}
DIVIDED = [kind for kind, more in KINDS.items() if "--shard" in more]
STEPS, HALF = 51, 21  # the last of each is one that is logged in any case


def flags(corpus: Path, run: Path, more: str = "", steps: int = STEPS) -> list[str]:
    return [*f"{MODEL} {RUN} --steps {steps} {more}".split(), "--data", str(corpus), "--run", str(run)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_cases(count: int, cases: list[dict], folder: Path) -> list[subprocess.CompletedProcess]:
    """Train the cases in `count` processes; return how each of them ended."""
    path = folder / "cases.json"
    path.write_text(json.dumps([{**case, "port": free_port()} for case in cases]))
    return run_processes(count, "worker.py", path)


def run_processes(count: int, script: str, argument: Path) -> list[subprocess.CompletedProcess]:
    """Run a script of this folder in `count` processes that know of each other."""
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": ".",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name(script)), str(argument)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=1000) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in watch.read_log(run / "log.jsonl") if "loss" in r}


@torch.no_grad()
def logits(run: Path) -> torch.Tensor:
    """Return what the last weights say to some ids: a key's bias, for one, may be anything and changes nothing."""
    ids = torch.randint(384, (4, 32), generator=torch.Generator().manual_seed(0))
    return GPT.from_pretrained(run / "last")(ids)[0]


def assert_equal(run: Path, other: Path) -> None:
    assert len(losses(other)) == 6
    assert losses(run) == pytest.approx(losses(other), rel=0, abs=1e-11)
    difference = (logits(run) - logits(other)).norm() / logits(other).norm()
    assert difference < 1e-11  # rounding makes up to 3e-13 of it


@pytest.fixture(autouse=True, scope="module")
def exactly():
    with in_float64():
        yield


def of_one(alone: Path, kind: str, part: str = "whole") -> Path:
    """Return the run of a single process that this kind is to equal."""
    return alone / f"{'muon' if 'muon' in kind else 'ours'}-{part}"


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """Return what a single process learns in all steps, saved half way, too."""
    folder = tmp_path_factory.mktemp("alone")
    for optimizer in ("ours", "muon"):
        for part, steps in (("half", HALF), ("whole", STEPS)):
            more = f"--optimizer {optimizer}"
            train_script.main(flags(corpus, folder / f"{optimizer}-{part}", more, steps=steps))
    return folder


def train_in(count: int, corpus: Path, alone: Path, folder: Path) -> Path:
    """Train every kind in `count` processes, and resume the half run of a single process in the sharded ones."""
    cases = [{"argv": flags(corpus, folder / kind, more)} for kind, more in KINDS.items()]
    for kind in DIVIDED:
        half = folder / f"{kind}-resumed"
        subprocess.run(["cp", "-r", str(of_one(alone, kind, "half")), str(half)], check=True)
        cases += [
            {"argv": flags(corpus, half, f"{KINDS[kind]} --resume")},
            {"argv": flags(corpus, folder / f"{kind}-half", KINDS[kind], steps=HALF)},
        ]
    lost = flags(corpus, folder / "lost", f"{KINDS['torch']} --checkpoint-every 10")
    ended = run_cases(count, [*cases, {"argv": lost, "leave_at": 25}], folder)
    assert [process.returncode for process in ended] == [2, 9, *[2] * (count - 2)], ended[0].stderr[-2000:]
    (folder / "stderr").write_text(ended[0].stderr)
    return folder


@pytest.fixture(scope="module")
def pair(corpus, alone, tmp_path_factory) -> Path:
    return train_in(2, corpus, alone, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(alone, pair, kind):
    assert_equal(pair / kind, of_one(alone, kind))


@pytest.mark.parametrize("kind", DIVIDED)
def test_a_single_process_run_goes_on_divided(alone, pair, kind):
    assert_equal(pair / f"{kind}-resumed", of_one(alone, kind))


@pytest.mark.parametrize("kind", DIVIDED)
def test_a_divided_run_goes_on_in_a_single_process(corpus, alone, pair, kind):
    train_script.main(flags(corpus, pair / f"{kind}-half", "--shard none --resume"))
    assert_equal(pair / f"{kind}-half", of_one(alone, kind))


@pytest.mark.parametrize("kind", DIVIDED)
def test_sharding_halves_the_optimizers_memory(alone, pair, kind):
    state = load_file(of_one(alone, kind) / "last" / "state.safetensors")
    whole = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("optimizer."))
    for rank in (0, 1):
        assert int((pair / f"{kind}.bytes-{rank}").read_text()) < 0.52 * whole


def test_the_sharded_optimizer_equals_torchs_zero_redundancy_optimizer(tmp_path):
    ended = run_processes(2, "zero.py", tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr[-2000:]
    ours, theirs = ([load_file(tmp_path / f"{whose}-{rank}.safetensors") for rank in (0, 1)]
                    for whose in ("ours", "torchs"))  # fmt: skip
    states = [[int(rank.pop("state")) for rank in ranks] for ranks in (ours, theirs)]
    assert max(states[0]) <= max(states[1])  # our shares are as equal as torch's
    for name, expected in theirs[0].items():
        for rank in (0, 1):
            assert torch.equal(ours[rank][name], expected), name


@pytest.mark.slow
def test_a_compiled_run_in_two_processes_learns_what_one_does(corpus, tmp_path):
    """One is compiled, too: compiled sums have another order, and the steps make more of the difference."""
    one = [
        {"argv": flags(corpus, tmp_path / f"{optimizer}-whole", f"--optimizer {optimizer} --compile")}
        for optimizer in ("ours", "muon")
    ]
    ended = run_cases(1, one, tmp_path)
    assert ended[0].returncode == 0, ended[0].stderr[-2000:]
    cases = [
        {"argv": flags(corpus, tmp_path / kind, f"{more} --compile")}
        for kind, more in KINDS.items()
        if kind in ("torch", "bucketed", "optimizer", "full", "full-by-hand", "muon-full")
    ]
    ended = run_cases(2, cases, tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr[-2000:]
    for case in cases:
        run = Path(case["argv"][-1])
        assert_equal(run, of_one(tmp_path, run.name))


@pytest.mark.slow
def test_four_processes_learn_what_one_does(corpus, alone, tmp_path):
    folder = train_in(4, corpus, alone, tmp_path)
    for kind in KINDS:
        assert_equal(folder / kind, of_one(alone, kind))
    for kind in DIVIDED:
        assert_equal(folder / f"{kind}-resumed", of_one(alone, kind))


def test_a_lost_process_ends_the_run_with_a_message_and_it_goes_on(corpus, alone, pair):
    last = (pair / "stderr").read_text().strip().splitlines()[-1]
    assert last.startswith("error: a process of this run is gone; the last good checkpoint is")
    assert "of step 20: start all again with --resume" in last
    train_script.main(flags(corpus, pair / "lost", "--resume"))
    assert_equal(pair / "lost", of_one(alone, "ours"))


def test_a_tuned_run_of_two_processes_killed_before_its_first_checkpoint_starts_from_its_weights_again(
    corpus, alone, tmp_path
):
    tuned = [
        flags(corpus, tmp_path / run, f"--optimizer ours --init-from {of_one(alone, 'ours')}", steps=11)
        for run in ("killed", "whole")
    ]
    killed = run_cases(2, [{"argv": tuned[0], "leave_at": 3, "leaving": [0, 1]}], tmp_path)
    assert [process.returncode for process in killed] == [9, 9], killed[0].stderr[-2000:]
    assert (tmp_path / "killed").is_dir() and not (tmp_path / "killed" / "last").exists()
    ended = run_cases(2, [{"argv": [*tuned[0], "--resume"]}, {"argv": tuned[1]}], tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr[-2000:]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert losses(tmp_path / "killed")[0] < 5  # random weights begin at ln 384 = 5.95


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_cannot_be_divided_is_refused_by_the_main_process_alone(
    corpus, tmp_path, monkeypatch, capsys, rank
):
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as stop:
        train_script.main(flags(corpus, tmp_path / "run", "--batch-tokens 96 --micro-batch 3"))
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == (1 if rank == 0 else 0)
    assert rank == 1 or "3 sequences (batch_tokens 96) cannot be divided among 2 processes" in err
    assert not (tmp_path / "run").exists()


def test_buckets_end_at_their_size_and_hold_everything():
    parameters = [torch.zeros(n, dtype=torch.float32) for n in (10, 20, 5, 100, 1)]
    buckets = list(distributed.buckets(parameters, limit=35 * 4))
    assert [[len(p) for p in bucket] for bucket in buckets] == [[10, 20, 5], [100], [1]]
