"""How a step is divided: by the batch alone, whatever the processes and passes."""

import dataclasses

import pytest
import torch

from model import GPT
from training import batching
from training.distributed import Processes
from training.pretraining import Pretraining


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_process_gets_its_share_in_passes_of_equal_size(tiny, world_size):
    divided = batching.divide(tiny, world_size)  # 16 sequences, 8 a pass
    assert (divided.sequences, divided.rows) == (16, 16 // world_size)
    assert divided.micro_batch == min(8, divided.rows)
    assert divided.micro_batch * divided.accumulation == divided.rows


def test_a_batch_that_cannot_be_divided_is_refused(tiny):
    with pytest.raises(
        ValueError, match=r"16 sequences.*cannot be divided among 3 processes.*multiple of 768"
    ):
        batching.divide(tiny, 3)


@pytest.mark.parametrize("kind", ["random", "documents"])
def test_the_processes_rows_are_those_of_one(tiny, kind):
    config = dataclasses.replace(tiny, batches=kind)

    def rows(processes: Processes) -> torch.Tensor:
        divided = batching.divide(config, processes.world_size)
        batches = Pretraining(config).open(divided, processes)
        return torch.stack([next(batches)[0] for _ in range(3)])  # (steps, rows, T)

    shares = torch.cat([rows(Processes(rank, 4)) for rank in range(4)], dim=1)
    assert torch.equal(shares, rows(Processes()))


def test_auto_takes_all_rows_where_they_fit_and_fewer_where_not(tiny, monkeypatch):
    config = dataclasses.replace(tiny, micro_batch="auto")
    divided = batching.divide(config, 1)
    assert (divided.micro_batch, divided.accumulation) == (16, 1)
    for room, expected in ((100, 16), (15, 8), (3, 2), (0, 1)):
        monkeypatch.setattr(batching.accounting, "largest_batch", lambda *_, room=room: room)
        fitted = batching.fit_memory(
            divided, GPT(config.model), torch.device("cpu"), torch.float32, Processes()
        )
        assert fitted.micro_batch == expected
