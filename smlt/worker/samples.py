"""A rank's samples: its virtual workers' part of every training batch, and of the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from smlt.worker.minibatch_buffer import Indices, MinibatchBuffer
from smlt.worker.sample_order import SampleOrder, evaluation_batches
from smlt.worker.schedule import Schedule, Slot
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
        *,
        batch_size: int,
    ) -> None:
        """Give the samples of some portions; the test split is gone through by ``batch_size``."""
        self.portions = portions
        """The virtual workers whose samples are computed on together, in order."""
        self._test = test
        self._batch_size = batch_size
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

    def batch_size(self, epoch: int) -> int:
        """Return how many samples an epoch's batches have over all ranks, but for its last."""
        return self._order.batch_size(epoch)

    def count(self, slot: Slot) -> int:
        """Return how many samples of a training step are this rank's."""
        return sum(self.portion_count(slot, portion) for portion in self.portions)

    def portion_count(self, slot: Slot, portion: range) -> int:
        return self._order.count(slot.epoch, slot.batch, portion)

    def training(self) -> list[Any]:
        """Return the samples of the next portion of a training step, which may be none."""
        return next(self._buffer)

    def evaluation(self, portion: range) -> Iterator[list[Any]]:
        """Iterate over a portion's part of the test split, in batches, in order."""
        if self._test is None:
            return
        batches = evaluation_batches(
            len(self._test),
            max(1, self._batch_size // 2),
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
