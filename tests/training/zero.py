"""One process of two: trains a model under our ZeRO-1 and under torch's. python zero.py FOLDER; else as worker.py.

Writes FOLDER/ours-RANK.safetensors and FOLDER/torchs-RANK.safetensors: the weights, and as "state" the size of the
optimizer's state in this process.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from training import distributed, optimizer

STEPS = 20
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 16), nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 50)
    )


def train(replica: distributed.Replica, model: nn.Module, move: Callable[[], None]) -> None:
    """Train on ids that differ between processes."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        ids = torch.randint(50, (4, 8), generator=generator)
        model.zero_grad()
        with replica.accumulate(last=True):
            nn.functional.cross_entropy(replica.forward(ids).flatten(0, 1), ids.flatten()).backward()
        replica.finish()
        move()


def ours() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = small_model()
    replica = distributed.BucketedReplica(model, bucket_bytes=4096)
    shares = distributed.ShardedParameters(list(model.parameters()), dist.get_world_size(), dist.get_rank())
    adamw = torch.optim.AdamW([p for p in model.parameters() if id(p) in shares.mine], **ADAMW)

    def move() -> None:
        adamw.step()
        shares.exchange()

    train(replica, model, move)
    return model, adamw


def torchs() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = small_model()
    adamw = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, **ADAMW)
    train(distributed.TorchReplica(model), model, adamw.step)
    return model, adamw.optim


def main() -> None:
    dist.init_process_group("gloo")
    for make in (ours, torchs):
        model, adamw = make()
        state = torch.tensor(optimizer.state_bytes([adamw]))
        path = Path(sys.argv[1]) / f"{make.__name__}-{dist.get_rank()}.safetensors"
        save_file(model.state_dict() | {"state": state}, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
