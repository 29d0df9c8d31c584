"""A rank's samples: its virtual workers' part of every training batch, and of the test split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smlt.worker.minibatch_buffer import Indices, MinibatchBuffer
from smlt.worker.sample_order import SampleOrder, evaluation_batches
from smlt.worker.schedule import Schedule
from smlt.worker.task import Dataset


class Samples:
    """Gives each step its samples, read ahead from the step that a generation begins with.

    A context manager. ``training`` and ``evaluation`` are called on the trainer's thread.
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset | None,
        order: SampleOrder,
        virtual: range,
        schedule: Schedule,
        first_step: int,
    ) -> None:
        self.virtual = virtual
        self._test = test
        self._order = order
        self._buffer = MinibatchBuffer(train, self._coming(schedule, first_step))

    def __enter__(self) -> Samples:
        self._buffer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._buffer.close()

    def count(self, batch: int) -> int:
        """Return how many samples of an epoch's batch are this rank's."""
        return self._order.count(batch, self.virtual)

    def training(self) -> list[Any]:
        """Return this rank's samples of the next training step, which may be none."""
        return next(self._buffer)

    def evaluation(self) -> Iterator[list[Any]]:
        """Iterate over this rank's part of the test split, in batches, in order."""
        if self._test is None:
            return
        batches = evaluation_batches(
            len(self._test),
            max(1, self._order.batch_size // 2),
            self._order.virtual_workers,
            self.virtual,
        )
        with MinibatchBuffer(self._test, iter(batches)) as buffer:
            yield from buffer

    def _coming(self, schedule: Schedule, step: int) -> Iterator[Indices]:
        while schedule.total is None or step < schedule.total:
            slot = schedule.at(step)
            if not slot.evaluation:
                yield self._order.batch(slot.epoch, slot.batch, self.virtual)
            step += 1
