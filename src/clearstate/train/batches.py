"""Batches in an order that depends on nothing but the seed: a run can stop anywhere and go on, on any process count.

    position  0 1 2 3 ...          counts items since the start of training, over all epochs and processes
    epoch     position // items    each epoch is a fresh permutation, drawn from (seed, epoch)

With w processes of batch size b, step k takes positions k b w ... (k + 1) b w, and rank r those that are r modulo w:
together the batch that one process of batch size b w would take.
"""

import os
import signal
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[int, int]  # epoch, item


class Items(Protocol):
    """Training items that are a pure function of (epoch, item); the seed is the data set's own."""

    def __len__(self) -> int: ...

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        """One item: `noisy` (n,) and `clean` (n,) or (sources, n), all items of one length."""
        ...


class Positions(Sampler[list[Key]]):
    """The keys of one process's batches, from a position on, without end."""

    def __init__(self, items: int, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        if items < 1:
            raise ValueError(
                "the training set is empty: nothing was found under the paths of the recipe's data section"
            )
        self.items, self.batch, self.seed, self.start, self.rank, self.world = items, batch, seed, start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        position = self.start
        while True:
            yield [self.key(position + self.rank + i * self.world) for i in range(self.batch)]
            position += self.batch * self.world

    def key(self, position: int) -> Key:
        epoch, place = divmod(position, self.items)
        return epoch, int(permutation(self.items, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def permutation(items: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(items, generator=generator)


class Keyed(Dataset[dict[str, Tensor]]):
    """`Items` behind the interface of a DataLoader, asked with a key instead of a number."""

    def __init__(self, items: Items):
        self.items = items

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return self.items.example(*key)


def loader(items: Items, positions: Positions, workers: int, prefetch: int) -> DataLoader[dict[str, Tensor]]:
    """An endless loader; its workers live as long as it is iterated."""
    return DataLoader(
        Keyed(items),
        batch_sampler=positions,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=quiet_worker if workers else None,
        generator=torch.Generator(),  # or it draws from the one that dropout uses, whenever a run is resumed
        pin_memory=torch.cuda.is_available(),
    )


def quiet_worker(_: int) -> None:
    """A worker ends when its loader does, or within seconds of a main process that was killed.

    Signals are the main process's to handle. torchrun and schedulers send SIGTERM to the whole group, and a worker that
    dies of it takes the main process with it before that can write its checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        os.nice(1)  # when cores are few, the step that is being computed goes first
    torch.set_num_threads(1)
