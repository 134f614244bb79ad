"""Batches in an order that depends only on the seed, so a run can stop and resume anywhere, on any process count.

    position  0 1 2 3 ...          counts items since the start of training, over all epochs and processes
    epoch     position // items    each epoch is a fresh permutation, drawn from (seed, epoch)

With w processes of batch size b, step k uses positions k b w ... (k + 1) b w; rank r uses those that are r modulo w.
Together they are the batch of one process with batch size b w.
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
    """Training items as a pure function of (epoch, item), for the seed of the data set."""

    def __len__(self) -> int: ...

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        """One item: `noisy` (n,) and `clean` (n,) or (sources, n), all items of one length."""
        ...


class Positions(Sampler[list[Key]]):
    """An endless iterator over the keys of one process's batches, from a start position."""

    def __init__(self, items: int, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        if items < 1:
            raise ValueError("the training set is empty; check the paths in the recipe's data section")
        self.items, self.batch, self.seed, self.start, self.rank, self.world = items, batch, seed, start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        position = self.start
        while True:
            yield [self.key(position + self.rank + i * self.world) for i in range(self.batch)]
            position += self.batch * self.world

    def key(self, position: int) -> Key:
        """The epoch and item at a position of the run."""
        epoch, place = divmod(position, self.items)
        return epoch, int(permutation(self.items, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def permutation(items: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(items, generator=generator)


class Keyed(Dataset[dict[str, Tensor]]):
    """Adapt `Items` to a DataLoader, indexed by key."""

    def __init__(self, items: Items):
        self.items = items

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return self.items.example(*key)


def loader(items: Items, positions: Positions, workers: int, prefetch: int) -> DataLoader[dict[str, Tensor]]:
    """An endless loader. Its workers run as long as the iteration."""
    return DataLoader(
        Keyed(items),
        batch_sampler=positions,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=quiet_worker if workers else None,
        generator=torch.Generator(),  # otherwise each resume changes the generator of dropout
        pin_memory=torch.cuda.is_available(),
    )


def quiet_worker(_: int) -> None:
    """Ignore signals in a worker. It ends with its loader, or within seconds after the main process was killed.

    The main process handles signals. torchrun and schedulers send SIGTERM to the whole group; a worker that exits would
    stop the main process before it can write its checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        os.nice(1)  # with few cores, the training step has priority
    torch.set_num_threads(1)
