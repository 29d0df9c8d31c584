"""Say what ended a generation, from the exception that a rank met."""

from __future__ import annotations

import traceback
from pathlib import Path

from smlt.errors import (
    CheckpointError,
    FrameError,
    RankMissingError,
    SmltError,
    StoreError,
    StoreFullError,
    UserError,
)
from smlt.messages.worker import Failure
from smlt.worker.divergence import DivergedError
from smlt.worker.generation import HandoverError
from smlt.worker.loading import HostError, UnreadableParentError
from smlt.worker.task_loader import describe
from smlt.worker.trainer import NumbersError

# The most specific first.
_KINDS: list[tuple[type[BaseException], str]] = [
    (NumbersError, "numbers"),
    (DivergedError, "diverged"),
    (HandoverError, "handover"),
    (HostError, "host"),
    (UnreadableParentError, "parent"),
    (UserError, "user"),
    (RankMissingError, "missing"),
    (StoreFullError, "space"),
    (StoreError, "store"),
    (FrameError, "frame"),
    (CheckpointError, "checkpoint"),
    (SmltError, "internal"),
    (MemoryError, "memory"),
]


def failure_of(error: BaseException, *, rank: int, step: int, code_root: Path) -> Failure:
    """Return what to tell everybody; the task's own exceptions come with their traceback."""
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return Failure(kind=name, message=f"rank {rank}: {error}", rank=rank, step=step)
    when = f"at step {step}" if step else "before its first step"
    return Failure(
        kind="task",
        message=f"rank {rank} failed {when}: {describe(error, code_root)}",
        rank=rank,
        step=step,
        traceback="".join(traceback.format_exception(error)),
    )
