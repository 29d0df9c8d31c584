"""What each numbered step of a job is: a pure function, so that no cursor need be saved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One numbered step: a training batch, or the evaluation that closes an epoch."""

    epoch: int
    batch: int
    """Batch within the epoch; meaningless for an evaluation."""
    evaluation: bool
    trained: int
    """Training steps done before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Epochs of training steps, each closed by an evaluation step where the task evaluates.

    A job bounded by ``steps`` ends after that many training steps, with an evaluation; one
    bounded by neither goes on until its target is reached.
    """

    steps_per_epoch: int
    evaluates: bool
    epochs: int | None
    steps: int | None

    @property
    def training_steps(self) -> int | None:
        """Training steps of the whole job; None where it is open-ended."""
        by_epochs = None if self.epochs is None else self.epochs * self.steps_per_epoch
        bounds = [bound for bound in (self.steps, by_epochs) if bound is not None]
        return min(bounds) if bounds else None

    @property
    def total(self) -> int | None:
        """Numbered steps of the whole job, evaluations included."""
        training = self.training_steps
        if training is None:
            return None
        evaluations = -(-training // self.steps_per_epoch) if self.evaluates else 0
        return training + evaluations

    def at(self, step: int) -> Slot:
        """Return what step number ``step`` is."""
        per_epoch = self.steps_per_epoch + self.evaluates
        epoch, batch = divmod(step, per_epoch)
        trained = epoch * self.steps_per_epoch + min(batch, self.steps_per_epoch)
        if self.training_steps is not None:
            trained = min(trained, self.training_steps)  # the last evaluation trains nothing
        total = self.total
        last = total is not None and step == total - 1
        evaluation = self.evaluates and (batch == self.steps_per_epoch or last)
        return Slot(epoch, batch, evaluation, trained)

    def is_last(self, step: int) -> bool:
        return self.total is not None and step >= self.total - 1

    def is_over(self, step: int) -> bool:
        """Whether nothing is left to do from this step on."""
        return self.total is not None and step >= self.total

    def step_after(self, step: int, trained: int) -> int:
        """Return where a job goes on that was saved at ``step`` with so many steps trained.

        That is ``step``, unless the job was made longer since: its last evaluation may have
        stood where training goes on now, and is then not counted.
        """
        while step > 0 and self.at(step).trained > trained:
            step -= 1
        return step
