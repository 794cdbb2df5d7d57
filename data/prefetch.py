"""The next batch is made by a thread while this one is trained on."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data.sampler import Sampler


class prefetch(Iterator[Any]):
    """Iterates over `sampler`'s batches on `device`, `depth` of them made ahead by a background thread.

    On a GPU the thread also puts them in pinned memory, from which the copy to the device runs without
    waiting. `state_dict` is the position after the last batch handed out, whatever was made ahead. An error
    in the sampler is raised by `next`. Close it, or use it in a `with`: the thread ends and the sampler is
    left where it stood after the last batch handed out, so that it can be used again.
    """

    def __init__(self, sampler: Sampler, device: str | torch.device = "cpu", depth: int = 2) -> None:
        self._sampler, self._device = sampler, torch.device(device)
        self._state = sampler.state_dict()
        self._ready: queue.Queue[tuple] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for batch in self._sampler:
                if self._device.type == "cuda":
                    batch = map_tensors(batch, torch.Tensor.pin_memory)
                if not self._put((batch, self._sampler.state_dict())):
                    return
            self._put((None, StopIteration()))
        except Exception as error:
            self._put((None, error))

    def _put(self, item: tuple) -> bool:
        """Waits for room in the queue; False when the prefetcher was closed meanwhile."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        batch, state = self._ready.get()
        if isinstance(state, BaseException):
            self.close()
            raise state
        self._state = state
        return map_tensors(batch, lambda tensor: tensor.to(self._device, non_blocking=True))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return self._state

    def close(self) -> None:
        """Ends the thread; the sampler goes back to the batch after the last one handed out."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._sampler.load_state_dict(self._state)

    def __enter__(self) -> "prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch with every tensor changed: a tensor, or a tuple, dict or dataclass of batches.

    >>> map_tensors((torch.ones(1), {"mask": torch.ones(1)}), lambda tensor: tensor + 1)
    (tensor([2.]), {'mask': tensor([2.])})
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: map_tensors(part, change) for name, part in batch.items()}
    if dataclasses.is_dataclass(batch):
        parts = {f.name: map_tensors(getattr(batch, f.name), change) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **parts)
    return tuple(map_tensors(part, change) for part in batch)
