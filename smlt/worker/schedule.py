"""What each numbered step of a job is: a pure function, so that no cursor need be saved."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import count

from smlt.messages.job import Origin


@dataclass(frozen=True, slots=True)
class Slot:
    """One numbered step: a training batch, or the evaluation that closes an epoch."""

    epoch: int
    batch: int
    """Batch within the epoch; meaningless for an evaluation."""
    evaluation: bool
    trained: int
    """Training steps done before this one."""


class Schedule:
    """Epochs of training steps, each closed by an evaluation step where the task evaluates.

    A job bounded by ``steps`` ends after that many training steps, with an evaluation; one
    bounded by neither goes on until its target is reached.
    """

    def __init__(
        self,
        steps_in: int | Callable[[int], int],
        *,
        evaluates: bool,
        epochs: int | None,
        steps: int | None,
        grows_at: Collection[int] = (),
        origin: Origin | None = None,
    ) -> None:
        """Lay out the steps.

        Args:
            steps_in: training steps of every epoch, or of each by its number; at least 1.
            evaluates: whether each epoch is closed by an evaluation.
            epochs: where the job ends, counted from the job's beginning, as all of these are.
            steps: training steps after which it ends, if that is sooner.
            grows_at: epochs before which the model changes.
            origin: where these epochs begin: those before it were of other data.
        """
        self._steps_in = steps_in
        self._evaluates = evaluates
        self._grows_at = frozenset(grows_at)
        self.origin = origin or Origin()
        self._begins = [self.origin]
        """Where each epoch begins, as far as was asked for."""
        self.training_steps, self.total = self._ends(epochs, steps)
        """Training steps, and numbered ones with evaluations; None where it is open-ended."""

    def at(self, step: int) -> Slot:
        """Return what step number ``step`` is; beyond the end there is nothing to train."""
        beyond = self.total is not None and step >= self.total
        begin = self._epoch_of(max(self.total or 0, 1) - 1 if beyond else step)
        batch, steps = step - begin.step, self._steps(begin.epoch)
        trained = begin.trained + min(batch, steps)
        if self.training_steps is not None:
            trained = min(trained, self.training_steps)  # the last evaluation trains nothing
        last = self.total is not None and step == self.total - 1
        evaluation = self._evaluates and not beyond and (batch == steps or last)
        return Slot(begin.epoch, batch, evaluation, trained)

    def is_last(self, step: int) -> bool:
        return self.total is not None and step >= self.total - 1

    def is_over(self, step: int) -> bool:
        """Whether nothing is left to do from this step on."""
        return self.total is not None and step >= self.total

    def grows_before(self, step: int) -> bool:
        """Whether the model changes between the step before and this one."""
        if not self._grows_at or self.is_over(step):
            return False
        begin = self._epoch_of(step)
        return step == begin.step and begin.epoch in self._grows_at

    def begins(self, step: int, epoch: int | None) -> bool:
        """Whether a step is the first of an epoch."""
        if epoch is None or self.is_over(step):
            return False
        begin = self._epoch_of(step)
        return (begin.step, begin.epoch) == (step, epoch)

    def step_after(self, step: int, trained: int) -> int:
        """Return where a job goes on that was saved at ``step`` with so many steps trained.

        That is ``step``, unless the job was made longer since: its last evaluation may have
        stood where training goes on now, and is then not counted.
        """
        while step > self.origin.step and self.at(step).trained > trained:
            step -= 1
        return step

    def _steps(self, epoch: int) -> int:
        return self._steps_in(epoch) if callable(self._steps_in) else self._steps_in

    def _epoch_of(self, step: int) -> Origin:
        """Return the beginning of the epoch that a step belongs to."""
        if not callable(self._steps_in):
            epochs = (step - self.origin.step) // (self._steps_in + self._evaluates)
            return self._after(self.origin, epochs)
        while self._begins[-1].step <= step:
            self._begins.append(self._after(self._begins[-1]))
        return self._begins[max(0, bisect_right(self._begins, step, key=lambda b: b.step) - 1)]

    def _after(self, begin: Origin, epochs: int = 1) -> Origin:
        """Return where another epoch begins, so many equal ones later."""
        steps = epochs * self._steps(begin.epoch)
        return Origin(
            step=begin.step + steps + epochs * self._evaluates,
            epoch=begin.epoch + epochs,
            trained=begin.trained + steps,
        )

    def _ends(self, epochs: int | None, steps: int | None) -> tuple[int | None, int | None]:
        """Training steps and numbered ones of the whole job."""
        if epochs is None and steps is None:
            return None, None
        origin, each = self.origin, self._steps_in
        left = math.inf if steps is None else max(0, steps - origin.trained)
        if callable(each):
            trained = evaluations = 0
            for more in self._until(epochs):
                if trained >= left:
                    break
                trained, evaluations = trained + more, evaluations + 1
            trained = int(min(trained, left))
        else:
            by_epochs = math.inf if epochs is None else each * (epochs - origin.epoch)
            trained = int(min(by_epochs, left))
            evaluations = -(-trained // each)
        total = origin.step + trained + self._evaluates * evaluations
        return origin.trained + trained, total

    def _until(self, epochs: int | None) -> Iterator[int]:
        """The steps of each epoch to come."""
        numbers = count(self.origin.epoch)
        for epoch in numbers if epochs is None else range(self.origin.epoch, epochs):
            yield self._steps(epoch)
