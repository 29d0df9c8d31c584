"""What crosses a boundary: between client and worker, or from a job to the client that resumes it.

All of it travels as JSON or msgpack built from plain fields, never as pickles.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Self, get_type_hints

EXACT = "exact"
"""The determinism that promises the same bits for any number of ranks, a power of two."""

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


class _Plain:
    """Mixin: a dataclass that turns into plain dicts and back."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain fields; unknown ones, of a newer version, are ignored."""
        kinds: dict[str, Any] = _kinds(cls)  # type: ignore[arg-type]
        known = {name: data[name] for name in kinds if name in data}
        for name, value in known.items():
            nested = kinds[name]
            if nested is not None and isinstance(value, Mapping):
                known[name] = nested.from_dict(value)
        return cls(**known)


@cache  # a client reads a thousand leases a second, and looking up type hints takes 0.2 ms
def _kinds(cls: Any) -> dict[str, Any]:
    """The fields of a message, each with the dataclass that its value is, if it is one."""
    hints = get_type_hints(cls)
    return {f.name: _dataclass_in(hints[f.name]) for f in fields(cls)}


def _dataclass_in(hint: Any) -> Any:
    """The dataclass named by a type hint such as ``Plan`` or ``Plan | None``, if there is one."""
    for candidate in (hint, *getattr(hint, "__args__", ())):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePlan(_Plain):
    """How many functions of what size, and how they exchange gradients if the plan decides that."""

    workers: int
    memory_mb: int
    aggregators: int | None = None
    """Ranks that own shards; None: as the job says."""
    wire_dtype: str | None = None
    """How gradients travel; None: as the job says."""

    def with_workers(self, workers: int) -> Self:
        """Return the plan for another number of ranks, of which the same share owns shards."""
        owners = self.aggregators
        if owners is not None:
            owners = math.ceil(owners * workers / self.workers)
        return replace(self, workers=workers, aggregators=owners)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(_Plain):
    """Every time limit of a job, in seconds: no wait is longer than its limit."""

    lease_s: float = 10.0  # a rank that has not been heard of for this long is lost
    heartbeat_s: float = 1.0
    start_s: float = 60.0  # from drawing a generation until its roster is fixed
    load_s: float = 300.0  # from the roster until every rank has its first shard out
    step_s: float = 120.0  # one wait for one shard
    save_s: float = 60.0  # an ending, from its first sign to the last rank's leaving
    objects_s: float = (
        300.0  # an object store that does not answer is waited for, by the ending too
    )
    client_lease_s: float = 4.0
    orphan_s: float = 5.0  # the client's lease may be gone for this long
    function_s: float = 900.0  # Lambda's own limit
    handover_s: float = 120.0  # how long before that limit a rank hands over
    store_s: float = 15.0  # a store that does not answer for this long is lost
    hold_s: float = 6.0  # a client's hold on the job that stands unchanged for this long is free
    stop_s: float = 5.0  # after a stop at once the workers' watchdogs end them within this

    @property
    def ending_s(self) -> float:
        """How long a rank may take to save, from when it has begun to."""
        return self.save_s + self.objects_s

    @property
    def handover_margin_s(self) -> float:
        """``handover_s``, which outlasts a short outage; no more than a third of all the time."""
        return min(self.handover_s, self.function_s / 3)

    @property
    def cut_margin_s(self) -> float:
        """How long before that limit a rank hands over although it waits for another one.

        Later than the agreed hand-over, for the step may yet be done, and early enough to save.
        """
        return self.handover_margin_s * 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(_Plain):
    """Where an epoch begins: its first numbered step, and the training steps before it."""

    step: int = 0
    epoch: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec(_Plain):
    """All that decides the result of a job; changes only where one generation ends."""

    target: str
    """``file.py:Class`` relative to the code's root, or ``module:Class``."""
    params: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    """SHA-256 of the deployment package."""
    data: str | None = None
    """Key of the data manifest in the object store."""
    origin: Origin = field(default_factory=Origin)
    """Where the steps on this data begin; what was before it was of other data."""
    watches: bool = False
    """Whether the job waits for more data when it has trained on all there is."""
    seed: int = 0
    batch_size: int = 64
    epochs: int | None = None
    steps: int | None = None
    pause_after: int | None = None
    """Epochs after which the job stops, to be gone on with; what depends on its length does not."""
    until: str | None = None
    patience: int | None = None
    deadline_s: float | None = None
    """Seconds of the client's clock from the job's start; None: as long as it takes."""
    budget_usd: float | None = None
    adapt: bool = False
    """Whether the resource manager may change workers and memory."""
    most_workers: int = 1
    """The most that it may use."""
    keep_best: str | None = None
    init_from: str | None = None
    """Key, in the object store, of safetensors weights to begin from."""
    virtual_workers: int = 16
    shard_bytes: int = 4 << 20
    aggregators: int | None = None
    """Owners of shards (m); by default as many as there are ranks."""
    tunes_aggregators: bool = False
    """Whether the resource manager may change them."""
    tries_plans: bool = False
    """Whether the first steps of a generation find out which shards and owners do best."""
    wire_dtype: str = "fp32"
    """``fp32``, ``bf16``, ``fp16``, or ``auto``: the first steps find out whether bf16 pays."""
    tunes_wire_dtype: bool = False
    """Whether the resource manager may round gradients on their way, or not."""
    cache_node: str | None = None
    """The type of ElastiCache node that the parameter store is, if its hours are to be counted."""
    link_mbps: float | None = None
    """The rate, in 10^6 bytes a second each way, of a worker's link to the parameter store."""
    determinism: str = "fast"
    """``exact``: the same bits for any number of ranks; ``fast``: for a fixed one."""
    threads: int | None = None
    """Threads that every function computes with, whatever its size; by default as it has vCPUs."""
    keep_checkpoints: int = 3
    trace: bool = False
    """Report when each shard was sent and received."""
    checkpoint_s: float = 60.0
    digest_steps: int = 50
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position(_Plain):
    """A committed state: what generation saved it, and at the start of which step."""

    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHold(_Plain):
    """A client's lease on a job: it holds while the beat goes on."""

    host: str
    pid: int
    since: float
    """Unix time, for people; nothing compares it."""
    beat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState(_Plain):
    """The durable truth about a job, one object, changed only by compare-and-set."""

    job_id: str
    spec: JobSpec
    plan: ResourcePlan
    status: str = "running"
    """running, completed, stopped, failed or removed."""
    generation: int = 0
    parent: Position | None = None
    token: int = 1
    """Fencing token of the client that holds the job; workers refuse a lower one."""
    client: ClientHold | None = None
    """Who leads the job now; None when nobody does."""
    stop_requested: bool = False
    stop_now: bool = False
    """The stop is not to wait for the end of the step."""
    ending: str = ""
    """Why the last generation ended, in words."""

    def planned(self) -> Self:
        """Return the job with what its plan says of the exchange of gradients in its spec."""
        plan, spec = self.plan, self.spec
        spec = replace(
            spec,
            aggregators=plan.aggregators or spec.aggregators,
            wire_dtype=plan.wire_dtype or spec.wire_dtype,
        )
        return replace(self, spec=spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask(_Plain):
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
class Bundle(_Plain):
    """A package that a function fetches from the object store before it imports it."""

    name: str
    version: str
    sha256: str
    packed: int
    """Bytes in the store."""
    unpacked: int
    """Bytes that its files take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState(_Plain):
    """What a rank says of itself with every heartbeat."""

    rank: int
    state: str
    """claimed, loading, training, evaluating, saving, left."""
    step: int = 0
    pid: int = 0
    waiting_for: str = ""
    """In words: "shard 3 of rank 1"; empty when it waits for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord(_Plain):
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
class PhaseRecord(_Plain):
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
class ShardsRecord(_Plain):
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
class WorkerReport(_Plain):
    """What a rank tells the client through the reports stream."""

    rank: int
    kind: str
    """steps, phases, shards, evaluation, notice or plan."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Of kind steps: StepRecord each; of kind phases: PhaseRecord each; of shards: ShardsRecord."""
    step: int = 0
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""
    total_steps: int | None = None
    batches: list[tuple[int, int]] = field(default_factory=list)
    """Of kind plan: training steps of the whole job, and the batch they have, in order."""
    gradient_bytes: int = 0
    """Of kind plan: of the model as it is now, in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(_Plain):
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
