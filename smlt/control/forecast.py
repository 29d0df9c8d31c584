"""What a whole job would take and cost by each plan, before any of it is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from smlt.control.goals import Goals, in_words, size
from smlt.control.performance_model import PerformanceModel
from smlt.control.plan_grid import as_setting
from smlt.control.prices import Prices
from smlt.control.step_cost import ParameterStorePrice, StepCost
from smlt.errors import UserError
from smlt.messages.job import Limits, ResourcePlan

_MARGIN = 1.15  # of memory, over the most that was seen in use
S3_ROUND_S = 0.4  # to put an object, and for another function to have it; AWS: 100 to 200 ms each
S3_CONCURRENT = 8  # requests of one function at a time
S3_REQUEST_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much there is to do."""

    steps: int
    batch_size: int
    gradient_bytes: int
    """In float32."""
    wire_bytes: int = 0
    """As the job says that it travels."""
    shard_bytes: int = 4 << 20
    evaluations: int = 0
    evaluation_s: float = 0.0
    """Of the whole test split on one vCPU."""
    start_s: float = 6.0
    """From drawing a generation to its first step."""
    save_s: float = 2.0
    needed_mb: float = 0.0
    """The most memory that a worker was seen to use; 0 if that is not known."""
    batches: Sequence[tuple[int, int]] = ()
    """Steps and the size of their batch, in order, where that changes."""

    @property
    def stretches(self) -> Sequence[tuple[int, int]]:
        """Steps of equal batches, and the size of these."""
        return self.batches or [(self.steps, self.batch_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One plan: times in seconds, costs in US dollars."""

    plan: ResourcePlan
    step_s: float
    time_s: float
    least_s: float
    """The time may as well be this, or ``most_s``: an interval of 90 %."""
    most_s: float
    cost_usd: float
    meets_goals: bool
    on_front: bool = False
    """No other plan is both sooner and cheaper."""


def forecasts(
    plans: Sequence[ResourcePlan],
    model: PerformanceModel,
    work: Workload,
    cost: StepCost,
    goals: Goals,
    limits: Limits,
    *,
    doubt: float = 1.0,
) -> list[Forecast]:
    """Forecast every plan that has the memory, in the order given.

    Args:
        plans: to choose from.
        model: of the time of a step.
        work: the job.
        cost: of a second and of a step, with the parameter store's.
        goals: which plans are to meet.
        limits: of the job; functions end after ``function_s``.
        doubt: a factor by which step times may be off beside what the model says of itself.

    Raises:
        UserError: none of the plans has enough memory.
    """
    roomy = _with_memory(plans, _MARGIN * work.needed_mb)
    settings = [replace(plan, wire_dtype=plan.wire_dtype or cost.wire_dtype) for plan in roomy]
    waits = np.array([_waiting(plan, cost) for plan in roomy])
    steps = [
        (count, model.predict([as_setting(p, samples, work.gradient_bytes) for p in settings]))
        for count, samples in work.stretches
    ]
    steps_s = sum(count * (each.step_s + waits) for count, each in steps)
    least_s = sum(count * (each.low_s / doubt + waits) for count, each in steps)
    most_s = sum(count * (each.high_s * doubt + waits) for count, each in steps)

    def row(index: int, plan: ResourcePlan) -> Forecast:
        time_s, generations = _time(plan, steps_s[index], work, limits)
        usd = _cost(plan, time_s, generations, work, cost)
        return Forecast(
            plan=plan,
            step_s=float(steps[0][1].step_s[index] + waits[index]),
            time_s=time_s,
            least_s=_time(plan, least_s[index], work, limits)[0],
            most_s=_time(plan, most_s[index], work, limits)[0],
            cost_usd=usd,
            meets_goals=goals.met_by(time_s, usd),
        )

    return _with_front([row(index, plan) for index, plan in enumerate(roomy)])


def _with_memory(plans: Sequence[ResourcePlan], needed_mb: float) -> list[ResourcePlan]:
    roomy = [plan for plan in plans if plan.memory_mb >= needed_mb]
    if not roomy:
        raise UserError(
            f"a step needs about {needed_mb:,.0f} MB, and no function has that: try a smaller "
            "batch, or micro-batches (accumulate)"
        )
    return roomy


def recommended(rows: Sequence[Forecast], goals: Goals) -> Forecast:
    """Return the best plan for the goals; where none meets them, the one that misses least."""
    meeting = [row for row in rows if row.meets_goals]
    if meeting:
        return min(meeting, key=lambda row: goals.score(row.time_s, row.cost_usd))

    def excess(row: Forecast) -> float:
        late = 1.0 if goals.deadline_s is None else row.time_s / goals.deadline_s
        dear = 1.0 if goals.budget_usd is None else row.cost_usd / goals.budget_usd
        return math.log(max(1.0, late)) + math.log(max(1.0, dear))

    return min(rows, key=excess)


def out_of_reach(rows: Sequence[Forecast], goals: Goals) -> str:
    """Say what would do where no plan meets the goals; nothing where one does."""
    if any(row.meets_goals for row in rows):
        return ""
    soonest, cheapest = min(rows, key=lambda r: r.time_s), min(rows, key=lambda r: r.cost_usd)
    deadline, budget = goals.deadline_s, goals.budget_usd
    if deadline is not None and soonest.time_s > deadline:
        return (
            f"the deadline of {in_words(deadline)} is out of reach: the soonest, "
            f"{size(soonest.plan)}, needs about {in_words(soonest.time_s)}"
        )
    if budget is not None and cheapest.cost_usd > budget:
        return (
            f"the budget of ${budget:g} is out of reach: the cheapest, {size(cheapest.plan)}, "
            f"needs about ${cheapest.cost_usd:.4g}"
        )
    in_time = [row for row in rows if deadline is not None and row.time_s <= deadline]
    least = min(in_time, key=lambda row: row.cost_usd)
    return (
        f"deadline and budget cannot both be met: what is done in time costs at least "
        f"${least.cost_usd:.4g}, with {size(least.plan)}"
    )


def store_prices(prices: Prices, node: str) -> tuple[ParameterStorePrice, ParameterStorePrice]:
    """Return Valkey on a node of that type, and S3.

    Raises:
        ConfigError: the table has no price of the node.
    """
    prices.rate("elasticache", "nodes", node)
    return ParameterStorePrice(kind="node", node=node), ParameterStorePrice(kind="s3")


def _waiting(plan: ResourcePlan, cost: StepCost) -> float:
    """Seconds that a step waits for S3's requests beside their bytes; servers take none."""
    if cost.store.kind != "s3" or plan.workers == 1:
        return 0.0
    traffic = cost.traffic(plan)
    requests = (2 * traffic.frames + traffic.fetches) / plan.workers
    return 2 * S3_ROUND_S + requests / S3_CONCURRENT * S3_REQUEST_S


def _time(plan: ResourcePlan, steps_s: float, work: Workload, limits: Limits) -> tuple[float, int]:
    """Return the job's seconds, and in how many generations: functions end after 15 minutes."""
    vcpus = plan.memory_mb / 1769
    evaluation_s = work.evaluation_s / plan.workers / min(vcpus, 1.0)
    work_s = float(steps_s) + work.evaluations * evaluation_s
    over_s = work.start_s + work.save_s
    in_one = max(steps_s / work.steps, limits.function_s - limits.handover_margin_s - over_s)
    generations = max(1, math.ceil(work_s / in_one))
    return work_s + generations * over_s, generations


def _cost(
    plan: ResourcePlan, time_s: float, generations: int, work: Workload, cost: StepCost
) -> float:
    """All functions run all the time; the store is paid for as long, and for what it moves."""
    return (
        time_s * cost.per_second(plan)
        + work.steps * cost.moving(plan)
        + generations * cost.start(plan.workers)
    )


def _with_front(rows: Sequence[Forecast]) -> list[Forecast]:
    front: set[ResourcePlan] = set()
    cheapest = math.inf
    for row in sorted(rows, key=lambda row: (row.time_s, row.cost_usd)):
        if row.cost_usd < cheapest:
            cheapest = row.cost_usd
            front.add(row.plan)
    return [replace(row, on_front=row.plan in front) for row in rows]
