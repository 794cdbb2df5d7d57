"""Two machines, made of two network namespaces joined by a virtual cable, under torchrun's own rendezvous."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train as train_script
from training import watch

ROOT = Path(__file__).parents[2]
PORT = 29511
CABLE = [
    "netns add slm0",
    "netns add slm1",
    "link add slmv0 type veth peer name slmv1",
    *(f"link set slmv{i} netns slm{i}" for i in (0, 1)),
    *(f"-n slm{i} addr add 10.77.0.{i + 1}/24 dev slmv{i}" for i in (0, 1)),
    *(f"-n slm{i} link set {device} up" for i in (0, 1) for device in ("lo", f"slmv{i}")),
]


@pytest.fixture
def hosts() -> Iterator[None]:
    """Make namespaces slm0 and slm1 at 10.77.0.1 and 10.77.0.2."""
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the ip command")
    try:
        for command in CABLE:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
        yield
    finally:
        for i in (0, 1):
            subprocess.run(["ip", "netns", "del", f"slm{i}"], capture_output=True)


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in watch.read_log(run / "log.jsonl") if "loss" in r]


@pytest.mark.slow
def test_two_hosts_learn_what_one_does(corpus, tmp_path, hosts):
    sizes = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --steps 12 --batch-tokens 512 --micro-batch 4"
    rest = "--eval-batches 2 --coherence-stories 1 --device cpu --precision float32 --data"
    flags = [*f"{sizes} {rest}".split(), str(corpus), "--run"]
    both = [
        subprocess.Popen(
            f"ip netns exec slm{i} {sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 "
            f"--node-rank {i} --rdzv-backend static --rdzv-endpoint 10.77.0.1:{PORT} --local-addr 10.77.0.{i + 1} "
            f"-- train.py {' '.join(flags)} {tmp_path / 'both'}".split(),
            cwd=ROOT,
            env=os.environ | {"GLOO_SOCKET_IFNAME": f"slmv{i}", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        )
        for i in (0, 1)
    ]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    train_script.main([*flags, str(tmp_path / "one")])
    assert len(losses(tmp_path / "one")) == 3
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
