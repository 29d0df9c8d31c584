"""Reads the records of coming batches ahead of the trainer, in one bounded thread."""

from __future__ import annotations

import logging
import random
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from smlt.errors import TaskError
from smlt.worker.task import Dataset

logger = logging.getLogger(__name__)

Indices = Sequence[int] | NDArray[np.int64] | range
_PROBES = 3


class MinibatchBuffer:
    """Iterates over batches of samples, in the order in which their indices are given.

    A context manager, and an iterator while it is entered. Records are read in a thread of its
    own; the dataset's ``transform`` runs on the caller's thread, when the batch is taken, and so
    sees the generators as the caller has seeded them. A dataset that draws random numbers in
    ``__getitem__`` itself is read on the caller's thread, with a notice.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Iterable[Indices],
        *,
        depth: int = 4,
        max_bytes: int = 64 << 20,
        limit_s: float = 120.0,
    ) -> None:
        """Store what to read.

        Args:
            dataset: what ``map_style`` accepted.
            batches: indices of each batch; may be endless, is consumed on the reading thread.
            depth: most batches that are kept ready.
            max_bytes: most bytes of records that are kept ready, beyond a first batch.
            limit_s: longest wait for one batch, and for the thread's end.
        """
        self._dataset = dataset
        self._batches = iter(batches)
        self._depth = depth
        self._max_bytes = max_bytes
        self._limit_s = limit_s
        self._transform = getattr(dataset, "transform", None)
        self._changed = threading.Condition()
        self._ready: deque[tuple[list[Any], int]] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Look whether the dataset draws random numbers; if not, begin to read ahead."""
        first = next(self._batches, None)
        if first is None:
            return self
        self._batches = chain([first], self._batches)
        if _draws_random_numbers(self._dataset, first[:_PROBES]):
            logger.warning(
                "%s.__getitem__ draws random numbers, so its records are not read ahead: draw "
                "them in a method transform(record) of the dataset instead",
                type(self._dataset).__name__,
            )
            return self
        self._thread = threading.Thread(target=self._read_ahead, name="minibatch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> bool:
        """End the thread; return False, with a notice, if a record still being read holds it."""
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(self._limit_s)
        if ended := not self._thread.is_alive():
            self._thread = None
        else:
            logger.warning(
                "a record of %s was still being read %.0f s after the end",
                type(self._dataset).__name__,
                self._limit_s,
            )
        return ended

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        """Return the samples of the next batch.

        Raises:
            TaskError: its records did not come within the time limit.
            Exception: what the dataset raised, with its own traceback.
        """
        records = self._take() if self._thread else _read(self._dataset, next(self._batches))
        if self._transform is None:
            return records
        return [self._transform(record) for record in records]

    def _take(self) -> list[Any]:
        with self._changed:
            came = self._changed.wait_for(
                lambda: self._ready or self._ended or self._closing, self._limit_s
            )
            if self._ready:
                records, _ = self._ready.popleft()
                self._changed.notify_all()
                return records
            if self._error is not None:
                raise self._error
            if came:
                raise StopIteration
        raise TaskError(
            f"{type(self._dataset).__name__} did not return the records of a batch within "
            f"{self._limit_s:.0f} s: make reading a record faster, or the batch smaller"
        )

    def _read_ahead(self) -> None:
        error: BaseException | None = None
        try:
            for indices in self._batches:
                records = _read(self._dataset, indices)
                if not self._put(records, sum(map(_bytes_of, records))):
                    return
        except BaseException as exc:
            error = exc
        with self._changed:
            self._error = error
            self._ended = True
            self._changed.notify_all()

    def _put(self, records: list[Any], size: int) -> bool:
        """Wait for room and add a batch; return False if the buffer is being closed."""
        with self._changed:
            # No limit of its own: the trainer may compute for long, and always closes the buffer.
            while not self._closing and not self._has_room(size):
                self._changed.wait(1.0)
            if self._closing:
                return False
            self._ready.append((records, size))
            self._changed.notify_all()
        return True

    def _has_room(self, size: int) -> bool:
        held = sum(size for _, size in self._ready)
        return not self._ready or (
            len(self._ready) < self._depth and held + size <= self._max_bytes
        )


def map_style(dataset: Any, task: str, split: str) -> Dataset:
    """Return what ``dataset()`` gave, if it is a map-style dataset.

    Raises:
        TaskError: it is something else; the text says what to return instead.
    """
    where = f"dataset() of {task} for the split {split!r} returned"
    kinds = {base.__name__ for base in type(dataset).__mro__}
    if "DataLoader" in kinds:
        raise TaskError(
            f"{where} a DataLoader: return its dataset; batches and their order are made from the "
            "job's seed, and a collate_fn belongs into the task's collate(samples)"
        )
    if "Sampler" in kinds:
        raise TaskError(
            f"{where} a Sampler: return the dataset; the order is made from the job's seed, so "
            "weigh samples in loss() instead of drawing some more often"
        )
    if "IterableDataset" in kinds or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TaskError(
            f"{where} {type(dataset).__name__}, which cannot be indexed: return an object with "
            "__len__ and __getitem__(index), so that each rank can read its own samples"
        )
    return dataset  # type: ignore[no-any-return]


def _read(dataset: Any, indices: Indices) -> list[Any]:
    rows = [int(index) for index in indices]
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(rows))
    return [dataset[row] for row in rows]


def _draws_random_numbers(dataset: Any, indices: Indices) -> bool:
    """Whether reading a few records moves a global generator; they are left as they were."""
    # A dataset can only draw from torch where somebody has imported it.
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), _numpy_state()
    torch_state = torch.get_rng_state() if torch else None
    _read(dataset, indices)
    moved = (
        random.getstate() != python_state
        or any(not np.array_equal(a, b) for a, b in zip(_numpy_state(), numpy_state, strict=True))
        or (torch is not None and not torch.equal(torch.get_rng_state(), torch_state))
    )
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    if torch:
        torch.set_rng_state(torch_state)
    return moved


def _numpy_state() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=True)  # noqa: NPY002
    return tuple(state) if isinstance(state, tuple) else ()


def _bytes_of(record: Any) -> int:
    """About how much memory a record takes."""
    if isinstance(record, tuple | list):
        return sum(map(_bytes_of, record))
    if isinstance(record, dict):
        return sum(map(_bytes_of, record.values()))
    return getattr(record, "nbytes", 0) or sys.getsizeof(record)
