"""What an execution environment remembers from one invocation to the next.

A rank that finds the parent's state here need not load it. The memory holds a state only between
invocations: it is taken out before anything can change it, and put back when it is whole again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from smlt.messages.job import JobSpec
from smlt.worker.task import Task


@dataclass(frozen=True, slots=True)
class Tag:
    """Which state it is: equal tags are equal bits."""

    job_id: str
    code: str
    length: tuple[int | None, int | None]
    """Of the job: a task that was told another one has other rates of learning ahead."""
    step: int
    digest: str

    @classmethod
    def of(cls, job_id: str, spec: JobSpec, step: int, digest: str) -> Self:
        """Name a state of a job."""
        return cls(job_id, spec.code, (spec.epochs, spec.steps), step, digest)


class WarmMemory:
    """Holds one task with its state, or none."""

    def __init__(self) -> None:
        self._kept: tuple[Tag, Task] | None = None

    def keep(self, tag: Tag, task: Task) -> None:
        """Remember a task that holds the state named by the tag."""
        self._kept = (tag, task)

    def take(self, tag: Tag) -> Task | None:
        """Return the task if it holds the state named, and forget it in either case."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] == tag else None
