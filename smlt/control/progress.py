"""What the client knows of a job: fed by the scheduler, read by the live view and status."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from smlt.messages.job import ResourcePlan
from smlt.messages.worker import RankState


@dataclass(slots=True)
class Progress:
    """The latest of everything; one object per job, changed in place."""

    job_id: str = ""
    state: str = "starting"
    """starting, running, waiting (for more data), stopping, completed, stopped or failed."""
    generation: int = 0
    workers: int = 0
    memory_mb: int = 0
    aggregators: int | None = None
    """Of them, who own shards, and below how gradients travel: where the plan decides that."""
    wire_dtype: str | None = None
    step: int = 0
    """Training steps done."""
    total_steps: int | None = None
    epoch: int = 0
    epochs: int | None = None
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The user's own training metrics, latest step."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The test metrics of the last evaluation."""
    steps_per_s: float = 0.0
    samples_per_s: float = 0.0
    ranks: list[RankState] = field(default_factory=list)
    elapsed_s: float = 0.0
    billed_gb_s: float = 0.0
    cost_usd: float = 0.0
    cost_is_estimate: bool = True
    plan: str = ""
    """Why it runs on so many workers of that size, or what is tried next."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, summed over the steps; the mean of the ranks. They overlap."""
    shards: str = ""
    """How gradients are cut and sent, and what the first steps found out about it."""
    slow: str = ""
    """Which ranks the others wait for in step after step, and how slow they are."""
    checkpoint: str = ""
    """Where the newest checkpoint is that a generation has ended with."""
    stalled: str = ""
    """What is being waited for when no step has ended for a while, naming rank and shard."""
    notices: list[str] = field(default_factory=list)
    """Sentences for the user, oldest first."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def size(self) -> ResourcePlan:
        """The plan that it runs on."""
        return ResourcePlan(
            workers=self.workers,
            memory_mb=self.memory_mb,
            aggregators=self.aggregators,
            wire_dtype=self.wire_dtype,
        )

    @size.setter
    def size(self, plan: ResourcePlan) -> None:
        self.workers, self.memory_mb = plan.workers, plan.memory_mb
        self.aggregators, self.wire_dtype = plan.aggregators, plan.wire_dtype

    def summary(self, state: str, message: str) -> Summary:
        """Return how the job ended, as far as this tells; what it has left behind is not in it."""
        loss = {} if self.loss is None else {"loss": self.loss}
        return Summary(
            job_id=self.job_id,
            state=state,
            metrics=loss | self.metrics | self.evaluation,
            steps=self.step,
            epochs=self.epoch,
            seconds=self.elapsed_s,
            billed_gb_s=self.billed_gb_s,
            cost_usd=self.cost_usd,
            cost_is_estimate=self.cost_is_estimate,
            workers=self.workers,
            memory_mb=self.memory_mb,
            aggregators=self.aggregators,
            wire_dtype=self.wire_dtype,
            generations=self.generation,
            message=message,
            phases=dict(self.phases),
            shards=self.shards,
            notices=list(self.notices),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a job ended."""

    job_id: str
    state: str
    """completed, stopped or failed."""
    metrics: dict[str, float]
    """Final loss, the user's training metrics and the last evaluation."""
    steps: int
    epochs: int
    seconds: float
    billed_gb_s: float
    cost_usd: float
    cost_is_estimate: bool
    workers: int
    memory_mb: int
    aggregators: int | None = None
    """Where the plan decided how many, and likewise how gradients travelled."""
    wire_dtype: str | None = None
    generations: int
    weights_digest: str | None = None
    """``sha256:…`` of the final weights."""
    model_path: str | None = None
    best_model_path: str | None = None
    checkpoint: str | None = None
    """Where the newest checkpoint is, when there is no model."""
    message: str
    """One sentence: why it ended."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, summed over the steps; the mean of the ranks. They overlap."""
    shards: str = ""
    """How gradients were cut and sent in the end."""
    traceback: str = ""
    """The worker's own, where a task's exception ended the job."""
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
