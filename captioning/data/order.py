"""The order in which rows are met: that of an epoch, dealt out to the ranks, or as they lie."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from captioning.data.randomness import addressed_seed


def spread(count: int, total: int) -> list[int]:
    """Up to `count` of the numbers from 0 to `total` - 1, evenly apart.

    >>> spread(3, 10), spread(5, 2)
    ([0, 3, 6], [0, 1])
    """
    return sorted({i * total // count for i in range(count)})


class InOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (0, row): these rows as they are."""

    def __init__(self, rows: Sequence[int], batch_size: int):
        self._rows, self._batch_size = rows, batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self._rows), self._batch_size):
            yield [(0, row) for row in self._rows[start : start + self._batch_size]]

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, row) for one rank; the order is a function of (seed, epoch), the same on every rank.

    Each global batch of `batch_size * world_size` rows is dealt out to the ranks in turn, so that n ranks see
    together what one process with n times the batch would see. In training, the ranks' batches are equally many: a
    last global batch too small to give every rank a row is left out. `start` batches of an epoch are passed over.
    """

    def __init__(self, rows: int, batch_size: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1):
        self._rows, self._batch_size, self._shuffle, self._seed = rows, batch_size, shuffle, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        self.start = 0
        self.sampler = self  # Lightning looks for `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.arange(self._rows)
        if self._shuffle:
            generator = torch.Generator().manual_seed(addressed_seed(self._seed, "order", self._epoch))
            order = torch.randperm(self._rows, generator=generator)
        for number in range(self.start, len(self)):
            start = number * self._batch_size * self._world_size
            together = order[start : start + self._batch_size * self._world_size]
            yield [(self._epoch, int(row)) for row in together[self._rank :: self._world_size]]

    def __len__(self) -> int:
        together = self._batch_size * self._world_size
        full, rest = divmod(self._rows, together)
        enough = self._world_size if self._shuffle else self._rank + 1
        return full + (rest >= enough)
