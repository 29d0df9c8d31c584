"""Find the best plan of a job by its first steps, and stop there: a job that ``resume`` goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from smlt.config import TrainConfig
from smlt.control.job import Job
from smlt.control.plan_search import Choice
from smlt.control.progress_feed import ProgressFeed
from smlt.control.resource_manager import ResourceManager
from smlt.control.search_grid import SearchGrid
from smlt.control.skopt_surrogate import SkoptGaussianProcess
from smlt.control.step_cost import StepCost
from smlt.control.surrogate import SampledGaussianProcess, Surrogate
from smlt.errors import ConfigError
from smlt.messages.job import ResourcePlan
from smlt.session import Session

SURROGATES: dict[str, Callable[[SearchGrid], Surrogate]] = {
    "sampled": SampledGaussianProcess,
    "skopt": SkoptGaussianProcess,
}
"""Gaussian processes by name: docs/decisions/0008 compares them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan that trained some steps."""

    plan: ResourcePlan
    step_s: float
    step_usd: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tuning(Session):
    """A session that ends when trying further plans teaches nothing more, or with its job."""

    def __init__(self, config: TrainConfig, *, surrogate: str = "sampled") -> None:
        """Take the settings of the job; ``surrogate`` is one of SURROGATES.

        Raises:
            ConfigError: there is no such surrogate.
        """
        if surrogate not in SURROGATES:
            raise ConfigError(f"--surrogate is {surrogate!r}: write {' or '.join(SURROGATES)}.")
        super().__init__(replace(config, adapt=True, inline=False))
        self._surrogate = SURROGATES[surrogate]
        self._resources: ResourceManager | None = None
        self._cost: StepCost | None = None

    def _manager(self, job: Job, feed: ProgressFeed, cost: StepCost) -> ResourceManager:
        spec = job.state.spec
        self._cost = cost
        self._resources = ResourceManager(
            spec,
            job.state.plan,
            cost,
            notice=feed.notice,
            seed=spec.seed,
            trials_only=True,
            surrogate=self._surrogate,
        )
        return self._resources

    @property
    def is_tuned(self) -> bool:
        """Whether it ended because trying further plans would have taught nothing."""
        return self._resources is not None and self._resources.is_settled

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in that order."""
        cost = self._cost
        if self._resources is None or cost is None:
            return []
        return [
            Trial(
                plan=plan,
                step_s=step_s,
                step_usd=cost.per_step(plan, step_s),
            )
            for plan, step_s in self._resources.measured.items()
        ]

    @property
    def best(self) -> Choice | None:
        """The best of them; None before the first."""
        return None if self._resources is None else self._resources.best
