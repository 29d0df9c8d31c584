"""A rank's samples: its virtual workers' part of every training batch, and of the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from smlt.worker.minibatch_buffer import Indices, MinibatchBuffer
from smlt.worker.sample_order import SampleOrder, evaluation_batches
from smlt.worker.schedule import Schedule
from smlt.worker.task import Dataset

_STEPS_AHEAD = 4


class Samples:
    """Gives each step its samples, read ahead from the step that a generation begins with.

    ``open``, ``training`` and ``evaluation`` are called on the trainer's thread; ``close``, which
    waits for what is still being read, on any but the event loop's.
    """

    def __init__(
        self,
        train: Dataset,
        test: Dataset | None,
        order: SampleOrder,
        portions: Sequence[range],
        schedule: Schedule,
        first_step: int,
    ) -> None:
        self.portions = portions
        """The virtual workers whose samples are computed on together, in order."""
        self._test = test
        self._order = order
        self._buffer = MinibatchBuffer(
            train, self._coming(schedule, first_step), depth=_STEPS_AHEAD * len(portions)
        )

    def open(self) -> None:
        """Begin to read ahead."""
        self._buffer.__enter__()

    def close(self) -> None:
        """End reading; what never began is closed as well."""
        self._buffer.close()

    def count(self, batch: int) -> int:
        """Return how many samples of an epoch's batch are this rank's."""
        return sum(self.portion_count(batch, portion) for portion in self.portions)

    def portion_count(self, batch: int, portion: range) -> int:
        return self._order.count(batch, portion)

    def training(self) -> list[Any]:
        """Return the samples of the next portion of a training step, which may be none."""
        return next(self._buffer)

    def evaluation(self, portion: range) -> Iterator[list[Any]]:
        """Iterate over a portion's part of the test split, in batches, in order."""
        if self._test is None:
            return
        batches = evaluation_batches(
            len(self._test),
            max(1, self._order.batch_size // 2),
            self._order.virtual_workers,
            portion,
        )
        with MinibatchBuffer(self._test, iter(batches)) as buffer:
            yield from buffer

    def _coming(self, schedule: Schedule, step: int) -> Iterator[Indices]:
        while schedule.total is None or step < schedule.total:
            slot = schedule.at(step)
            if not slot.evaluation:
                for portion in self.portions:
                    yield self._order.batch(slot.epoch, slot.batch, portion)
            step += 1
