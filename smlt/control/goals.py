"""What a job is to reach, deadline and budget, and what that makes the best plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from smlt.messages.job import JobSpec, ResourcePlan
from smlt.messages.worker import StepFlag

if TYPE_CHECKING:  # the command line uses this too, and need not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

    T = TypeVar("T", float, NDArray[np.float64])

TIME, COST = "time", "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a job is."""

    elapsed_s: float
    spent_usd: float
    step: int
    total_steps: float | None
    """None where the end is open."""

    @property
    def left(self) -> float | None:
        """Steps still to take; None where the end is open."""
        return None if self.total_steps is None else max(0, self.total_steps - self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Deadline and budget, either of which may be missing.

    With a deadline a job is to cost least, with only a budget it is to be done soonest; with
    neither, the product of time and cost is to be least.
    """

    deadline_s: float | None = None
    budget_usd: float | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        return cls(deadline_s=spec.deadline_s, budget_usd=spec.budget_usd)

    @property
    def limited(self) -> tuple[str, ...]:
        """Which of time and cost have a limit."""
        given = ((TIME, self.deadline_s), (COST, self.budget_usd))
        return tuple(name for name, limit in given if limit is not None)

    def score(self, time_s: T, cost_usd: T) -> T:
        """What is to be least, of a step as of a job; numbers or arrays."""
        if self.deadline_s is not None:
            return cost_usd
        return time_s if self.budget_usd is not None else (time_s * cost_usd) ** 0.5

    def met_by(self, time_s: float, cost_usd: float) -> bool:
        """Whether a whole job of that time and cost is within both."""
        in_time = self.deadline_s is None or time_s <= self.deadline_s
        return in_time and (self.budget_usd is None or cost_usd <= self.budget_usd)

    def used(self, time_s: float, cost_usd: float) -> float:
        """Return as what multiple of its limit the worse of the two is; more than 1 is a miss."""
        late = 0.0 if self.deadline_s is None else time_s / self.deadline_s
        dear = 0.0 if self.budget_usd is None else cost_usd / self.budget_usd
        return max(late, dear)

    def missed_by(self, plan: ResourcePlan, time_s: float, cost_usd: float) -> list[str]:
        """Say which of them a whole job of that time and cost misses, and what would do."""
        deadline, budget, said = self.deadline_s, self.budget_usd, []
        if deadline is not None and time_s > deadline:
            said.append(
                f"the deadline of {in_words(deadline)} is out of reach: {size(plan)} need about "
                f"{in_words(time_s)}. --deadline {math.ceil(1.1 * time_s / 60)}m would do"
            )
        if budget is not None and cost_usd > budget:
            said.append(
                f"the budget of ${budget:g} is out of reach: {size(plan)} need about "
                f"${cost_usd:.4g}. --budget {1.1 * cost_usd:.3g} would do"
            )
        return said

    def per_step(self, standing: Standing, over_s: float, rate: float) -> dict[str, float]:
        """Return the most that each step that is left may take and cost.

        Args:
            standing: how far the job is; one without an end has no such limits.
            over_s: seconds that go by beside steps: to start, and to save.
            rate: dollars that such a second costs.
        """
        if standing.left is None:
            return {}
        left, limits = max(1, standing.left), {}
        if self.deadline_s is not None:
            limits[TIME] = (self.deadline_s - standing.elapsed_s - over_s) / left
        if self.budget_usd is not None:
            limits[COST] = (self.budget_usd - standing.spent_usd - over_s * rate) / left
        return {name: max(most, 1e-12) for name, most in limits.items()}

    def exhausted(
        self, standing: Standing, reserve_s: float, reserve_usd: float
    ) -> tuple[str, StepFlag] | None:
        """Say why to stop now, if what is left is only enough to end in good order.

        Args:
            standing: how far the job is.
            reserve_s: seconds from a stop until the last function has ended.
            reserve_usd: what that costs.
        """
        budget, deadline = self.budget_usd, self.deadline_s
        if budget is not None and standing.spent_usd + reserve_usd >= budget:
            return f"stopped before it crosses its budget of ${budget:g}", StepFlag.BUDGET
        if deadline is not None and standing.elapsed_s + reserve_s >= deadline:
            return f"stopped at its deadline of {in_words(deadline)}", StepFlag.DEADLINE
        return None


def size(plan: ResourcePlan) -> str:
    """Say a plan in words."""
    workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
    return f"{workers} of {plan.memory_mb:,} MB{exchange(plan)}"


def exchange(plan: ResourcePlan) -> str:
    """Say how a plan has gradients exchanged, if it decides that, as in ``, 2 aggregators``."""
    said = ""
    if plan.aggregators is not None:
        said += f", {plan.aggregators} aggregator{'' if plan.aggregators == 1 else 's'}"
    return said if plan.wire_dtype is None else f"{said}, {plan.wire_dtype} on the wire"


def in_words(seconds: float) -> str:
    """Write a time as ``45 s``, ``2 min 30 s``, ``12 min`` or ``1 h 30 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
