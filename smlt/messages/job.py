"""A job as its object in the object store tells it: what it is to do, and how far it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

from smlt.messages.plain import Plain

EXACT = "exact"
"""The determinism that promises the same bits for any number of ranks, a power of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePlan(Plain):
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
class Limits(Plain):
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
class Origin(Plain):
    """Where an epoch begins: its first numbered step, and the training steps before it."""

    step: int = 0
    epoch: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec(Plain):
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
class Position(Plain):
    """A committed state: what generation saved it, and at the start of which step."""

    generation: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHold(Plain):
    """A client's lease on a job: it holds while the beat goes on."""

    host: str
    pid: int
    since: float
    """Unix time, for people; nothing compares it."""
    beat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState(Plain):
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
