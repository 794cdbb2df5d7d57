"""Fully sharded data parallelism, written out in plain collectives: no process keeps a whole model (ZeRO stage 3).

Each of W processes keeps 1/W of the rows of every parameter, of its gradient and of the optimizer's state
(Rajbhandari et al. 2019, section 5.3; Zhao et al. 2023). The parameters of a layer are whole only while it computes:

    forward pass    all-gather the layer's parameters, compute, free them; the next layer's are on their way meanwhile
    backward pass   all-gather them again, compute, free them, reduce-scatter their gradients: each process gets the
                    mean over all processes for its own rows

The autograd graph of the forward pass remembers parameters that are freed by the time of the backward pass. So a whole
parameter is one tensor for all time whose *memory* comes and goes: free() takes its storage away, gather() fills a new
one, and what the graph remembers is right again (torch's FSDP2, `fully_shard`, does the same).

The rows kept are a DTensor, torch's word for "rows of a divided tensor": optimizers, clipping and checkpoints read them
as they read FSDP2's. What moves during a step is moved here.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.functional import pad

# torch 2.13 renamed both, and warns under the old names; gloo has them, too.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class ShardedParameter:
    """A parameter that is divided by rows, and its whole twin, which has memory at times only.

    Rows are dealt out as torch.chunk does: ceil(rows / W) to each process, the last may have fewer or none.
    """

    def __init__(self, whole: nn.Parameter, dtype: torch.dtype, mesh: DeviceMesh) -> None:
        rows, *rest = whole.shape
        size = -(-rows // mesh.size())  # rows of a process, the last ones filled up
        mine = whole.detach().split(size)[mesh.get_rank() :][:1] or [whole.detach()[:0]]
        self.numel = size * whole[:1].numel()
        self.rows = nn.Parameter(
            self._divided(mine[0].clone(), whole, mesh), requires_grad=whole.requires_grad
        )
        self.padded = whole.new_empty(
            mesh.size() * size, *rest, dtype=dtype
        )  # (W size, …), shares its storage
        self.whole = nn.Parameter(self.padded[:rows], requires_grad=whole.requires_grad)
        self.places: list[tuple[nn.Module, str]] = []
        self.gradient: Tensor | None = None
        """The whole gradient of this process's rows of the batch, until it is sent."""

    @staticmethod
    def _divided(mine: Tensor, whole: Tensor, mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(mine, mesh, [Shard(0)], shape=whole.shape, stride=whole.stride())

    def mine(self) -> Tensor:
        """Return this process's rows, flat and filled up: (numel,)."""
        rows = self.rows.detach().to_local().flatten().to(self.padded.dtype)
        return pad(rows, (0, self.numel - len(rows)))

    def show(self, parameter: nn.Parameter) -> None:
        """Let the modules compute with this one of the two."""
        for module, name in self.places:
            setattr(module, name, parameter)

    def keep_gradient(self) -> None:
        """Move the whole gradient of a backward pass to the sum over the step's passes, in the rows' dtype."""
        gradient = self.whole.grad.to(self.rows.dtype)
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)
        self.whole.grad = None

    def take_gradient(self, world_size: int) -> Tensor:
        """Return the whole gradient, filled up, a row for each process: (W, numel)."""
        gradient, self.gradient = self.gradient, None
        missing = len(self.padded) - len(gradient)
        filled = (
            torch.cat([gradient, gradient.new_zeros(missing, *gradient.shape[1:])]) if missing else gradient
        )
        return filled.reshape(world_size, self.numel)

    def add_gradient(self, mine: Tensor) -> None:
        """Add the mean gradient of this process's rows, flat and filled up, to what optimizers read."""
        local = self.rows.to_local()
        gradient = self._divided(mine[: local.numel()].view_as(local), self.rows, self.rows.device_mesh)
        self.rows.grad = gradient if self.rows.grad is None else self.rows.grad + gradient


class Unit:
    """Parameters that travel together: those of one layer that have one dtype on the way."""

    def __init__(self, parameters: Sequence[ShardedParameter], mesh: DeviceMesh) -> None:
        self.parameters, self.world_size = parameters, mesh.size()
        self._gathering: tuple[Tensor, dist.Work] | None = None
        self._reducing: tuple[list[ShardedParameter], Tensor, Tensor, dist.Work] | None = None
        self._is_whole = True
        self.free()

    def start_gather(self) -> None:
        """Ask for the whole parameters, unless they are here or on their way."""
        if self._is_whole or self._gathering:
            return
        mine = torch.cat([parameter.mine() for parameter in self.parameters])  # (N,)
        everyones = mine.new_empty(self.world_size * len(mine))  # (W N,)
        self._gathering = everyones, all_gather(everyones, mine, async_op=True)

    def gather(self) -> None:
        """Return when the whole parameters are here."""
        self.start_gather()
        if not self._gathering:
            return
        (everyones, work), self._gathering = self._gathering, None
        work.wait()
        parts = everyones.view(self.world_size, -1).split([p.numel for p in self.parameters], dim=1)
        for parameter, part in zip(self.parameters, parts, strict=True):  # part (W, numel)
            padded = parameter.padded
            padded.untyped_storage().resize_(padded.nbytes)
            padded.data.view(part.shape).copy_(part)  # .data: autograd need not know that the memory is new
            parameter.show(parameter.whole)
        self._is_whole = True

    def free(self) -> None:
        """Take the memory of the whole parameters away."""
        if self._gathering:
            self._gathering[1].wait()
            self._gathering = None
        if self._is_whole:
            for parameter in self.parameters:
                parameter.padded.untyped_storage().resize_(0)
                parameter.show(parameter.rows)
        self._is_whole = False

    def start_reduce(self) -> None:
        """Send the gradients: each process will have the mean of its rows."""
        sent = [parameter for parameter in self.parameters if parameter.gradient is not None]
        if not sent:
            return
        whole = torch.cat([p.take_gradient(self.world_size) for p in sent], dim=1).flatten()  # (W N,)
        mine = whole.new_empty(len(whole) // self.world_size)  # (N,)
        self._reducing = sent, mine, whole, reduce_scatter(mine, whole, async_op=True)

    def reduce(self) -> None:
        """Return when the gradients that were sent are those of this process's rows."""
        if not self._reducing:
            return
        (sent, mine, _, work), self._reducing = self._reducing, None
        work.wait()
        mine /= self.world_size
        for parameter, part in zip(sent, mine.split([p.numel for p in sent]), strict=True):
            parameter.add_gradient(part)


class Layer:
    """The units of a module, and how many of its gradients the backward pass still owes."""

    def __init__(self, module: nn.Module, units: Sequence[Unit]) -> None:
        self.module, self.units = module, units
        self.trained = [p for unit in units for p in unit.parameters if p.whole.requires_grad]
        self.missing = len(self.trained)
        self.in_backward = False

    def start_gather(self) -> None:
        """Ask for the whole parameters."""
        for unit in self.units:
            unit.start_gather()

    def gather(self) -> None:
        """Return when the whole parameters are here."""
        for unit in self.units:
            unit.gather()

    def free(self) -> None:
        """Take the memory of the whole parameters away, and expect a new pass."""
        for unit in self.units:
            unit.free()
        self.missing, self.in_backward = len(self.trained), False


class FullySharded:
    """A module whose `layers` are divided among all processes; what is in none of them stays whole.

    `module` itself may be one of the layers: it then has the parameters outside of the others, and keeps them whole
    from the forward to the backward pass, which begins where the forward pass ends. Parameters become DTensors, in
    place: make the optimizers afterwards. With a `dtype` the layers' matrices travel and compute in it, while vectors,
    the module's own parameters and all gradients travel in the dtype of the weights. All processes start with
    equal weights and run the same layers in the same order.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype | None = None
    ) -> None:
        self.module = module
        mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
        inner = [layer for layer in layers if layer is not module]
        self._layers = [_shard(layer, dtype, mesh) for layer in inner]
        if len(inner) < len(layers):
            self._layers.insert(0, _shard(module, None, mesh))
        self._last_pass = True
        self._sent: Layer | None = None
        for number, layer in enumerate(self._layers):
            self._watch(number, layer)

    def _watch(self, number: int, layer: Layer) -> None:
        """Call the methods below when a layer's passes begin and end."""
        layer.module.register_forward_pre_hook(lambda *_: self._before_forward(number))
        layer.module.register_forward_hook(lambda _, __, output: self._after_forward(number, output))
        for parameter in layer.trained:
            hook = functools.partial(self._after_gradient, layer, parameter)
            parameter.whole.register_post_accumulate_grad_hook(hook)

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Surround a forward and backward pass; gradients are sent in the `last` one of a step."""
        self._last_pass = last
        self._free()  # what an interrupted pass has left may be weights of an earlier step
        yield

    def _before_forward(self, number: int) -> None:
        layer = self._layers[number]
        if layer.in_backward:  # activation checkpointing computes it once more: it is whole
            return
        layer.gather()
        for following in self._layers[number + 1 : number + 2]:
            following.start_gather()

    def _after_forward(self, number: int, output: Any) -> None:
        layer = self._layers[number]
        if layer.in_backward:
            return
        trained = [t for t in _tensors(output) if t.requires_grad]
        for tensor in trained:
            tensor.register_hook(lambda _: self._before_backward(number))
        if not trained or layer.module is not self.module:
            layer.free()

    def _before_backward(self, number: int) -> None:
        layer = self._layers[number]
        layer.gather()
        layer.in_backward = True
        for following in self._layers[:number][-1:]:
            following.start_gather()

    @torch.no_grad()
    def _after_gradient(self, layer: Layer, parameter: ShardedParameter, _: Tensor) -> None:
        parameter.keep_gradient()
        layer.missing -= 1
        if layer.missing == 0:
            layer.free()
            if self._last_pass:
                self._send(layer)

    def _send(self, layer: Layer) -> None:
        """Send a layer's gradients, after those of the one before have arrived: at most one layer's are under way."""
        self._receive()
        for unit in layer.units:
            unit.start_reduce()
        self._sent = layer

    def _receive(self) -> None:
        for unit in self._sent.units if self._sent else ():
            unit.reduce()
        self._sent = None

    @torch.no_grad()
    def finish(self) -> None:
        """Return when every gradient is the mean over the processes; call it after the last pass."""
        for layer in self._layers:  # a layer some of whose parameters had no part in the loss
            self._send(layer)
        self._receive()
        self._free()

    def _free(self) -> None:
        for layer in self._layers:
            layer.free()


def _shard(module: nn.Module, dtype: torch.dtype | None, mesh: DeviceMesh) -> Layer:
    """Divide the parameters of a module that are not divided yet; its matrices travel in `dtype`, if given."""
    divided: dict[nn.Parameter, ShardedParameter] = {}
    units: dict[torch.dtype, list[ShardedParameter]] = defaultdict(list)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(parameter, DTensor):
                continue
            if parameter not in divided:  # a tied one has several places
                travels = dtype if dtype and parameter.dim() > 1 else parameter.dtype
                divided[parameter] = ShardedParameter(parameter, travels, mesh)
                units[travels].append(divided[parameter])
            divided[parameter].places.append((owner, name))
    return Layer(module, [Unit(parameters, mesh) for parameters in units.values()])


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a module's output: a tensor, or a tuple that holds some."""
    outputs = output if isinstance(output, tuple) else (output,)
    return [tensor for tensor in outputs if isinstance(tensor, Tensor)]
