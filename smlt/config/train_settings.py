"""What a user may ask of a training job, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smlt.config.aws import with_endpoint
from smlt.config.goals import BestBy, parse_best, parse_until
from smlt.config.limits import CONCURRENCY_LIMIT, FUNCTION_S
from smlt.config.values import Duration, Names, Source

DEFAULT_RUN_DIR = Path(".smlt")
_NOTHING = Names()
_ORPHAN_TIMEOUT = Duration(5)
_CHECKPOINT_EVERY = Duration(60)
_MOST_STREAMS = 128  # by default; more are asked for with --virtual-workers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The options of ``smlt train``; ``TrainConfig`` is one whose values are checked."""

    target: str
    """``file.py:Class`` or ``module:Class``."""
    data: Source | Path | None = None
    """Folder of the data, or ``s3://bucket/prefix``; by default ``data`` beside the task's file."""
    workers: int = 4
    memory_mb: int = 1769
    """Memory of one function, in MB of 1,048,576 bytes; 1,769 MB buy one whole vCPU."""
    epochs: int | None = None
    """1 when neither epochs nor steps nor until is given."""
    steps: int | None = None
    batch_size: int = 64
    """Samples in one step, over all workers."""
    seed: int = 0
    until: str | None = None
    patience: int | None = None
    """Evaluations without a better metric after which training ends."""
    init_from: Path | None = None
    keep_best: str | None = None
    shard_mb: float | None = None
    """None means a size that suits the parameter store."""
    aggregators: int | None = None
    wire_dtype: str = "fp32"
    """How gradients travel: ``bf16`` and ``fp16`` are rounded, with error feedback."""
    tune: Names = _NOTHING
    """What else an adapting job may change: ``aggregators``, ``wire-dtype``."""
    run_dir: Path = DEFAULT_RUN_DIR
    params: tuple[str, ...] = ()
    """``KEY=VALUE`` each, for the task's constructor."""
    watch: bool = False
    """Wait for more data when all is trained, and train on that, until it is stopped."""
    inline: bool = False
    """One rank, in this process; workers does not matter then."""
    trace: bool = False
    """Write to the event log when each shard was sent and received."""
    json: bool = False
    quiet: bool = False
    objects: str | None = None
    """URL of the object store, ``s3://bucket/prefix``; None keeps objects in the run directory."""
    s3_endpoint: str | None = None
    """URL of an S3-compatible service, for all S3 URLs that name none; None is AWS."""
    link_mbps: float | None = None
    """Megabytes (10^6 bytes) a second of every worker's link to the parameter store, each way."""
    parameters: str | None = None
    """URL of a running Valkey or Redis server; None starts one on this machine."""
    virtual_workers: int | None = None
    """Fixed partition of the data; None means ``streams``' own choice."""
    deadline: Duration | None = None
    """Seconds from the start within which the job is to be done; it is stopped then."""
    budget: float | None = None
    """US dollars that the job may cost; it is stopped before it crosses them."""
    adapt: bool | None = None
    """Let the job change workers and memory itself; by default if it has a deadline or budget."""
    max_workers: int | None = None
    """The most that an adapting job may use; None means as many as ``streams``."""
    orphan_timeout: Duration = _ORPHAN_TIMEOUT
    """Seconds for which workers go on without a client; then they save and leave."""
    platform: str = "local"
    """``local``: functions run on this machine; ``aws``: in an AWS account."""
    yes: bool = False
    """Start on AWS without a budget and without being asked."""
    function_timeout: Duration = FUNCTION_S[1]
    """Seconds after which Lambda ends a function; the job goes on in the next ones."""
    chaos: int | None = None
    """Seed of a Lambda service that misbehaves, for trying a job against it."""
    cache_node: str | None = None
    """Type of the ElastiCache nodes of ``parameters``, whose hours are then part of the cost."""
    prices: Path | None = None
    """A file whose rates go before those that come with the package."""
    determinism: str = "fast"
    """``exact``: the same bits for any number of workers; ``fast``: for a fixed one."""
    keep_checkpoints: int = 3
    checkpoint_every: Duration = _CHECKPOINT_EVERY
    """Seconds between checkpoints in the background, which count only when no worker survives."""
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each value came from, in words, for messages about it."""

    def where(self, name: str) -> str:
        """Say in words where a field's value came from: ``--workers``, ``SMLT_WORKERS``, a line."""
        return self.sources.get(name, name)

    @property
    def object_store(self) -> str | None:
        """The object store's URL with the endpoint in it, as every worker needs it."""
        return with_endpoint(self.objects, self.s3_endpoint)

    @property
    def remote_data(self) -> str | None:
        """The URL of the data with the endpoint in it, where they are no folder."""
        return with_endpoint(self.data, self.s3_endpoint) if isinstance(self.data, Source) else None

    @property
    def data_folder(self) -> Path | None:
        """The folder that was given for the data."""
        return self.data if isinstance(self.data, Path) else None

    @property
    def parameter_store(self) -> str | None:
        """The parameter store's URL with the endpoint in it, as every worker needs it."""
        return with_endpoint(self.parameters, self.s3_endpoint)

    @property
    def streams(self) -> int:
        """Virtual workers: the given number, else a power of two that is enough for all workers.

        A job that adapts gets as many as its batch allows, up to 128, for it can never use more
        workers than these.
        """
        if self.virtual_workers is not None:
            return self.virtual_workers
        least = max(16, 1 << (max(self.workers, self.max_workers or 1) - 1).bit_length())
        if not self.adapts or self.max_workers is not None:
            return least
        return max(least, min(_MOST_STREAMS, 1 << (self.batch_size.bit_length() - 1)))

    @property
    def adapts(self) -> bool:
        """Whether the job chooses its workers and memory itself as it goes."""
        if self.inline:
            return False
        has_goal = self.deadline is not None or self.budget is not None
        return has_goal if self.adapt is None else self.adapt

    @property
    def most_workers(self) -> int:
        """The most workers that an adapting job may use."""
        return min(self.streams, self.max_workers or CONCURRENCY_LIMIT)

    @property
    def watched(self) -> BestBy | None:
        """The metric that patience looks at: that of keep_best, else that of until."""
        if self.keep_best is not None:
            return parse_best(self.keep_best, self.where("keep_best"))
        if self.until is not None:
            until = parse_until(self.until, self.where("until"))
            return BestBy(until.metric, until.lower_is_better)
        return None
