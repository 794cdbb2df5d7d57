"""One process of several: trains models under our FSDP and under torch's. python fully_sharded.py FOLDER.

Writes, in rank 0, FOLDER/CASE-ours.safetensors and FOLDER/CASE-torchs.safetensors: the weights, every gradient that an
optimizer has seen, whole, and the losses; and FOLDER/CASE-whole.json: the most bytes of parameters that were whole
during a step of ours, and those after it.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from model import GPT, GPTConfig
from training import fsdp

torch.set_num_threads(1)
STEPS, PASSES, IDS = 4, 2, 53  # rows of the embedding that no number of processes divides
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def gpt(**changes) -> tuple[GPT, list[nn.Module]]:
    shape = {"n_layer": 3, "n_head": 2, "n_embd": 24, "block_size": 16, "vocab_size": IDS}
    model = GPT(GPTConfig(**shape, **changes))
    model.wpe.weight.requires_grad_(False)
    return model, list(model.h)


class Perceptron(nn.Module):
    """Matrices alone in its layers: vectors travel in float32 with us and in bfloat16 with torch."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(IDS, 24)
        self.h = nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(3))
        self.unused = nn.Linear(3, 3)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        x = self.wte(ids)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.h:
                x = x + layer(x).tanh()
        return None, nn.functional.cross_entropy((x @ self.wte.weight.T).flatten(0, 1), targets.flatten())


def perceptron() -> tuple[nn.Module, list[nn.Module]]:
    model = Perceptron()
    return model, list(model.h)


CASES: dict[str, tuple[Callable, torch.dtype | None]] = {
    "gpt": (gpt, None),
    "recomputed": (functools.partial(gpt, checkpoint_activations=True, tied_head=False), None),
    "half": (perceptron, torch.bfloat16),
}


class Ours:
    def __init__(self, model: nn.Module, layers: list[nn.Module], dtype: torch.dtype | None):
        self.sharded = fsdp.FullySharded(model, [*layers, model], dtype)
        self.accumulate, self.finish = self.sharded.accumulate, self.sharded.finish


class Torchs:
    def __init__(self, model: nn.Module, layers: list[nn.Module], dtype: torch.dtype | None):
        for layer in layers:
            fully_shard(layer, **({"mp_policy": HALF} if dtype else {}))
        self.model = fully_shard(model)

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield

    def finish(self) -> None: ...


def whole_bytes(parameters: list[Tensor]) -> int:
    return sum(p.untyped_storage().nbytes() for p in parameters)


def watch(sharded: fsdp.FullySharded, most: list[int]) -> Callable[[], int]:
    """Note how many bytes are whole whenever a layer has been gathered; return what tells how many are now."""
    parameters = [p.whole for layer in sharded._layers for unit in layer.units for p in unit.parameters]
    gather = fsdp.Unit.gather

    def noting(unit: fsdp.Unit) -> None:
        gather(unit)
        most.append(whole_bytes(parameters))

    fsdp.Unit.gather = noting
    return lambda: whole_bytes(parameters)


def train(case: str, make: type, folder: Path) -> None:
    torch.manual_seed(0)
    model, layers = CASES[case][0]()
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    outside = sum(p.nbytes for p in model.parameters()) - sum(sizes)
    replica, most = make(model, layers, CASES[case][1]), []
    now = watch(replica.sharded, most) if make is Ours else None
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator, found = torch.Generator().manual_seed(dist.get_rank()), {}
    for step in range(STEPS):
        for number in range(PASSES):
            ids = torch.randint(IDS, (2, 16), generator=generator)
            with replica.accumulate(last=number == PASSES - 1):
                loss = model(ids, ids)[1]
                loss.backward()
            found[f"loss.{step}.{number}"] = loss.detach()
        replica.finish()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient.{step}.{name}"] = parameter.grad.full_tensor()
        adamw.step()
        adamw.zero_grad()
    found |= {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    if dist.get_rank() == 0:
        path = folder / f"{case}-{make.__name__.lower()}.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, path)
        if now:
            noted = {"most": max(most), "after": now(), "layer": max(sizes), "outside": outside}
            (folder / f"{case}-whole.json").write_text(json.dumps(noted))


def main() -> None:
    dist.init_process_group("gloo")
    for case in CASES:
        for make in (Ours, Torchs):
            train(case, make, Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
    # All is on disk. Python's own end sometimes aborts: it meets a thread of gloo that device meshes keep alive.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
