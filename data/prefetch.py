"""The next batch is made by a thread while this one is trained on."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from data.sampler import Batch, Sampler


class prefetch(Iterator[Batch]):
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
            for x, y in self._sampler:
                if self._device.type == "cuda":
                    x, y = x.pin_memory(), y.pin_memory()
                if not self._put((x, y, self._sampler.state_dict())):
                    return
            self._put((None, None, StopIteration()))
        except Exception as error:
            self._put((None, None, error))

    def _put(self, item: tuple) -> bool:
        """Waits for room in the queue; False when the prefetcher was closed meanwhile."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        x, y, state = self._ready.get()
        if isinstance(state, BaseException):
            self.close()
            raise state
        self._state = state
        return x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)

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
