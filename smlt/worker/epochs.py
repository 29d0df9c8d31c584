"""What a task says of its epochs: how large their batches are, and before which the model grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from smlt.errors import TaskError
from smlt.worker.sample_order import SampleOrder
from smlt.worker.schedule import Schedule
from smlt.worker.task import Task


def batch_sizes(task: Task, batch_size: int, virtual_workers: int) -> int | Callable[[int], int]:
    """Return the batch size, or that of each epoch by its number if the task has its own.

    Raises:
        TaskError: ``batch_size`` is no method; what it returns is checked with each call.
    """
    name = type(task).__name__
    if not callable(task.batch_size):
        raise TaskError(
            f"{name}.batch_size is {task.batch_size!r}: write it as a method, batch_size(epoch), "
            "or give the attribute another name"
        )

    if getattr(type(task), "batch_size", None) is Task.batch_size:
        return batch_size

    @cache  # one answer for an epoch, whatever the task does
    def of(epoch: int) -> int:
        given = task.batch_size(epoch)
        if given is None:
            return batch_size
        if not _is_whole(given) or given < virtual_workers:
            raise TaskError(
                f"{name}.batch_size({epoch}) is {given!r}: return a whole number of at least "
                f"{virtual_workers}, since so many virtual workers share each batch, or None"
            )
        return int(given)

    return of


def growth(task: Task) -> tuple[int, ...]:
    """Return the epochs before which the task grows, ascending.

    Raises:
        TaskError: ``grow_at`` holds something else.
    """
    name = type(task).__name__
    try:
        epochs = sorted(task.grow_at)
    except TypeError:
        epochs = [-1]
    if not all(_is_whole(epoch) and epoch >= 1 for epoch in epochs):
        raise TaskError(
            f"{name}.grow_at is {task.grow_at!r}: list numbers of epochs, of which 1 is the second"
        )
    return tuple(int(epoch) for epoch in epochs)


def batches_of(schedule: Schedule, order: SampleOrder) -> list[tuple[int, int]]:
    """Return the training steps of a job with the batch they have, joined where that is equal.

    Nothing of a job without an end. Steps before the schedule's origin are not among them.
    """
    if schedule.training_steps is None:
        return []
    found: list[tuple[int, int]] = []
    epoch, left = schedule.origin.epoch, schedule.training_steps - schedule.origin.trained
    if not callable(order.epoch_steps):
        return [(left, order.batch_size(epoch))] if left else []
    while left > 0:
        steps, size = min(left, order.steps_in(epoch)), order.batch_size(epoch)
        before = found.pop()[0] if found and found[-1][1] == size else 0
        found.append((before + steps, size))
        left -= steps
        epoch += 1
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
