"""What a job goes through: its data, the order of their samples, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from smlt.messages.job import EXACT, JobSpec
from smlt.worker.data_iterator import Data
from smlt.worker.epochs import batch_sizes, growth
from smlt.worker.minibatch_buffer import map_style
from smlt.worker.sample_order import SampleOrder, portions, virtual_block
from smlt.worker.samples import Samples
from smlt.worker.schedule import Schedule
from smlt.worker.seeding import derive_seed
from smlt.worker.task import Dataset, Task


@dataclass(frozen=True, slots=True)
class Course:
    """The same on every rank."""

    spec: JobSpec
    train: Dataset
    test: Dataset | None
    """None where the task does not evaluate."""
    order: SampleOrder
    schedule: Schedule
    grows_at: Sequence[int]
    """The epochs before which the model grows, ascending."""

    @classmethod
    def of(cls, task: Task, data: Data, spec: JobSpec) -> Self:
        """Ask a task for its datasets and its epochs.

        Raises:
            TaskError: they are not what a task needs.
            Exception: the user's code raised.
        """
        train = _dataset(task, data, spec, "train")
        test = _dataset(task, data, spec, "test") if task.evaluates else None
        sizes = batch_sizes(task, spec.batch_size, spec.virtual_workers)
        order = SampleOrder(len(train), sizes, spec.virtual_workers, spec.seed)
        grows_at = growth(task)
        schedule = Schedule(
            order.epoch_steps,
            evaluates=task.evaluates,
            epochs=spec.epochs,
            steps=spec.steps,
            grows_at=grows_at,
            origin=spec.origin,
        )
        return cls(spec, train, test, order, schedule, grows_at)

    @property
    def known_steps(self) -> int | None:
        """What schedulers of learning rates are told: nothing where more data may come."""
        return None if self.spec.watches else self.schedule.training_steps

    def growths(self, after: int, step: int) -> list[int]:
        """Return the epochs whose growth is due before a step, of those after an epoch."""
        if self.schedule.is_over(step):
            return []
        now = self.schedule.at(step).epoch
        return [epoch for epoch in self.grows_at if after < epoch <= now]

    def samples(self, rank: int, ranks: int, step: int) -> Samples:
        """Return the samples of one of the ranks, from a step on."""
        virtual = virtual_block(rank, ranks, self.spec.virtual_workers)
        return Samples(
            self.train,
            self.test,
            self.order,
            portions(virtual, exact=self.spec.determinism == EXACT),
            self.schedule,
            step,
            batch_size=self.spec.batch_size,
        )


def _dataset(task: Task, data: Data, spec: JobSpec, split: str) -> Dataset:
    # A random split inside must be the same on every rank.
    task.seed_generators(derive_seed(spec.seed))
    return map_style(task.dataset(data, split), type(task).__name__, split)
