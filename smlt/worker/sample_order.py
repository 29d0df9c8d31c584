"""Which samples make up a batch: a pure function of seed, epoch and virtual worker."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from smlt.errors import TaskError


class SampleOrder:
    """The order in which an epoch's samples are visited, whatever the number of ranks.

    Position p of an epoch belongs to virtual worker p mod V and is entry p // V of its stream; a
    stream is a permutation of the virtual worker's own contiguous block of rows, so that a rank
    reads no rows but its own. Batch t is made of positions tB up to (t+1)B.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int | Callable[[int], int],
        virtual_workers: int,
        seed: int,
    ) -> None:
        """Order so many samples; ``batch_size`` may depend on the epoch's number."""
        if samples < 1:
            raise TaskError("the train split is empty: dataset() returned one of length 0")
        self.samples = samples
        self._batch_size = batch_size
        self.virtual_workers = virtual_workers
        self.seed = seed
        self._streams: dict[tuple[int, int], NDArray[np.int64]] = {}

    def batch_size(self, epoch: int) -> int:
        """Return how many samples an epoch's batches have, but for its last."""
        return self._batch_size(epoch) if callable(self._batch_size) else self._batch_size

    def steps_in(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return -(-self.samples // self.batch_size(epoch))

    @property
    def epoch_steps(self) -> int | Callable[[int], int]:
        """Batches of every epoch, or of each by its number."""
        return self.steps_in if callable(self._batch_size) else self.steps_in(0)

    def batch(self, epoch: int, index: int, virtual: range) -> NDArray[np.int64]:
        """Return the rows that some virtual workers have in a batch, in the workers' order."""
        return np.concatenate(
            [np.empty(0, np.int64)]
            + [self._stream(epoch, v)[self._entries(epoch, index, v)] for v in virtual]
        )

    def count(self, epoch: int, index: int, virtual: range) -> int:
        """Return how many samples some virtual workers have in a batch."""
        entries = [self._entries(epoch, index, v) for v in virtual]
        return int(sum(part.stop - part.start for part in entries))

    def batch_samples(self, epoch: int, index: int) -> int:
        """Return the number of samples in a whole batch: the last of an epoch may be short."""
        size = self.batch_size(epoch)
        return min(size, self.samples - index * size)

    def _entries(self, epoch: int, index: int, v: int) -> slice:
        """The part of stream v whose positions lie in batch ``index``."""
        first = index * self.batch_size(epoch)
        last = first + self.batch_samples(epoch, index)
        # Entries before position p in stream v: those k with kV + v < p.
        return slice(*(-(-(p - v) // self.virtual_workers) for p in (first, last)))

    def _stream(self, epoch: int, v: int) -> NDArray[np.int64]:
        known = self._streams.get((epoch, v))
        if known is not None:
            return known
        # Prefetching runs into the next epoch while this one is finished; older ones are done.
        for old in [key for key in self._streams if key[0] not in (epoch, epoch - 1)]:
            del self._streams[old]
        block = row_block(self.samples, self.virtual_workers, v)
        entropy = np.random.SeedSequence(self.seed, spawn_key=(epoch, v))
        # NumPy promises the raw stream of a bit generator for ever, its shuffles only within a
        # version; and jobs outlive versions.
        keys = np.random.PCG64(entropy).random_raw(len(block))
        stream = np.argsort(keys, kind="stable").astype(np.int64) + block.start
        self._streams[epoch, v] = stream
        return stream


def row_block(samples: int, virtual_workers: int, v: int) -> range:
    """Return the rows of virtual worker v: the first ``samples % V`` blocks have one more."""
    size, larger = divmod(samples, virtual_workers)
    start = v * size + min(v, larger)
    return range(start, start + size + (v < larger))


def virtual_block(rank: int, world_size: int, virtual_workers: int) -> range:
    """Return the virtual workers of a rank: contiguous, their numbers differing by at most one."""
    return range(rank * virtual_workers // world_size, (rank + 1) * virtual_workers // world_size)


def portions(virtual: range, *, exact: bool) -> list[range]:
    """Return which virtual workers are computed on together: each alone where bits must agree."""
    return [range(v, v + 1) for v in virtual] if exact else [virtual]


def evaluation_batches(
    samples: int, batch_size: int, virtual_workers: int, virtual: range
) -> list[range]:
    """Return the rows of the test split that some virtual workers evaluate, in batches.

    The split is cut into V contiguous blocks, and a rank goes through its own in order.
    """
    if not virtual:
        return []
    start = row_block(samples, virtual_workers, virtual[0]).start
    stop = row_block(samples, virtual_workers, virtual[-1]).stop
    return [range(row, min(row + batch_size, stop)) for row in range(start, stop, batch_size)]
