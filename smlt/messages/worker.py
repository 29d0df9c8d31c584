"""What client and workers say to each other while a job runs."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Any

from smlt.messages.plain import Plain

SAVING = "saving"
"""What a rank says of itself while it saves its state at an ending."""


class StepFlag(enum.IntFlag):
    """What a rank wants of the end of a step; ORed over all ranks, it rides on the frames."""

    TARGET = 1  # stop: the job's own end, by its last step, --until or --patience
    PLAN = 2  # stop: another number of ranks, another memory size
    HANDOVER = 4  # stop: the function's time limit is near
    USER = 8  # stop: Ctrl-C, smlt stop
    BUDGET = 16  # stop
    ORPHANED = 32  # stop: no client has been seen for the orphan time-out
    DEADLINE = 64  # stop
    GROWTH = 128  # stop: the model changes before the next step
    CHECKPOINT = 256  # go on, and save a checkpoint meanwhile
    STRAGGLER = 512  # stop: a slow rank is to go on in another environment
    PAUSE = 1024  # stop: the epochs after which the job is to pause are over

    @property
    def stops(self) -> StepFlag:
        """The reasons to end the generation."""
        return self & ~StepFlag.CHECKPOINT


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask(Plain):
    """The payload of one invocation."""

    job_id: str
    generation: int
    rank: int
    token: int
    objects: str
    """URL of the object store."""
    parameters: str
    """URL of the parameter store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle(Plain):
    """A package that a function fetches from the object store before it imports it."""

    name: str
    version: str
    sha256: str
    packed: int
    """Bytes in the store."""
    unpacked: int
    """Bytes that its files take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState(Plain):
    """What a rank says of itself with every heartbeat."""

    rank: int
    state: str
    """claimed, loading, training, evaluating, saving, left."""
    step: int = 0
    pid: int = 0
    waiting_for: str = ""
    """In words: "shard 3 of rank 1"; empty when it waits for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord(Plain):
    """One training step, as the reporting rank saw it; equal on all ranks but for the time."""

    step: int
    epoch: int
    loss: float
    samples: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    batch_size: int = 0
    """Of the epoch: the last batch may have fewer samples. 0 from a version that did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord(Plain):
    """Where the time of one training step went at one rank (``aggregation.phases``)."""

    step: int
    seconds: float
    phases: dict[str, float]
    """Seconds by phase. They overlap, so that their sum may be more than the step's."""
    requests: dict[str, int] = field(default_factory=dict)
    """Sent to the parameter store since the record before, by their kind."""
    spans: list[tuple[str, int, int, float, float]] = field(default_factory=list)
    """Phase, shard, other rank, begin and end; of a job that is traced."""

    @property
    def busy_s(self) -> float:
        """What holds the rank up longest: its computing, or its link, one way or the other.

        Waiting for others does not count, nor does what only owners of shards have to do.
        """
        computing = self.phases.get("compute", 0.0) + self.phases.get("apply", 0.0)
        return max(computing, *(self.phases.get(name, 0.0) for name in ("UL-shard", "DL-grad")))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsRecord(Plain):
    """How gradients are cut and sent from a step on (``aggregation.plan_trials``)."""

    step: int
    text: str
    """All of it, in words."""
    shards: int
    shard_bytes: int
    """Of the largest, on the wire."""
    aggregators: int
    transfers: int
    """Frames of one rank that are under way in each direction."""
    wire_dtype: str
    tried: dict[str, float] = field(default_factory=dict)
    """Seconds of the shortest step of each way that was tried; empty where there was no choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport(Plain):
    """What a rank tells the client through the reports stream."""

    rank: int
    kind: str
    """steps, phases, shards, evaluation, notice or plan."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Of kind steps: StepRecord each; of kind phases: PhaseRecord each; of shards: ShardsRecord."""
    step: int = 0
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Of kind evaluation: it took so long."""
    text: str = ""
    total_steps: int | None = None
    batches: list[tuple[int, int]] = field(default_factory=list)
    """Of kind plan: training steps of the whole job, and the batch they have, in order."""
    gradient_bytes: int = 0
    """Of kind plan: of the model as it is now, in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Plain):
    """Why a generation was aborted: who called it, and what happened."""

    kind: str
    """task, numbers, lost, missing, store, frame, start, stop, space, host, parent, handover,
    diverged or internal."""
    message: str
    rank: int | None = None
    step: int | None = None
    traceback: str = ""

    @property
    def signature(self) -> tuple[str, str]:
        """What makes two failures the same one: whichever rank was the first to meet it."""
        return self.kind, re.sub(r"\brank \d+", "rank", self.message)
