"""Choose workers and memory while a job trains, so that it meets its deadline and its budget.

With a deadline the job is to cost least, with only a budget to be done soonest; with neither, the
product of time and cost is least. Each plan that is tried trains real steps: the performance model
is fitted to them, is the prior mean of a Gaussian process, and that names the next plan, as long as
what it promises is more than what going over takes. Afterwards a change-point test watches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smlt.control.cost_model import StepCost
from smlt.control.drift import DriftDetector
from smlt.control.optimizer import CONFIDENCE, OBJECTIVE, Optimizer, PriorMean
from smlt.control.performance_model import (
    Granularity,
    Measurement,
    PerformanceModel,
    Setting,
    fit_performance,
)
from smlt.control.plan_grid import plan_grid
from smlt.control.search_grid import Array, Plan
from smlt.control.surrogate import Indices, SampledGaussianProcess
from smlt.messages import JobSpec, ResourcePlan, StepFlag, StepRecord

_WARM_UP = 1  # first steps of a generation, which load and compile
_LEAST_STEPS = 5  # of one plan, to know its step time
_MOST_STEPS = 20
_PROBE_S = 2.0  # as long as they take less than this in all
_START_S = 6.0  # from one plan to the next, before any such time was seen
_SAVE_S = 2.0  # from a stop to the last rank's leaving, likewise
_MOST_PROBES = 10
_TRIAL = 0.1  # of the time and money left, the most that one trial may take
_FAR = math.log(4.1)  # a trial has at most four times the workers, or memory, of one before
_TIME, _COST = "time", "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a job is."""

    elapsed_s: float
    spent_usd: float
    step: int
    total_steps: int | None
    """None where the end is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now: go over to a plan, or stop."""

    reason: str
    """In a sentence, for the user."""
    plan: ResourcePlan | None = None
    stop: StepFlag | None = None
    at_once: bool = False
    """Stop without waiting for a step: none was taken yet by this generation."""
    saving: float = 0.0
    """Expected, as a fraction of what the rest of the job takes."""


class ResourceManager:
    """Told of generations and steps, and asked what to do. It starts and stops nothing itself."""

    def __init__(
        self,
        spec: JobSpec,
        plan: ResourcePlan,
        cost: StepCost,
        *,
        notice: Callable[[str], None],
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self._spec = spec
        self._cost = cost
        self._notice = notice
        self._grid = plan_grid(spec, plan)
        self._plans = [_resources(self._grid.plan(i)) for i in range(len(self._grid))]
        self._surrogate = SampledGaussianProcess(self._grid)
        self._granularity = Granularity(virtual_workers=spec.virtual_workers)
        self._rng = np.random.default_rng(seed)
        self._measured: dict[ResourcePlan, float] = {}
        self._fitted: tuple[dict[ResourcePlan, float], PerformanceModel] | None = None
        self._optimizer = self._new_optimizer()
        self._times: list[float] = []
        self._skipped = 0
        self._going_over = False
        self._settled = False
        self._drift: DriftDetector | None = None
        self._drifted = False
        self._probes = 0
        self._began: float | None = None
        self._asked: float | None = None
        self._start_s, self._save_s = _START_S, _SAVE_S

    def begin(self, plan: ResourcePlan, now: float) -> None:
        """A generation is drawn with this plan."""
        if plan != self.plan:
            self._drift = None
        self.plan = plan
        self._times, self._skipped, self._going_over = [], 0, False
        self._began = now

    def end(self, now: float) -> None:
        """The generation is over, and its last rank has left."""
        if self._asked is not None:
            self._save_s = max(self._save_s, now - self._asked)
            self._asked = None

    def step(self, record: StepRecord, now: float) -> None:
        """A step was taken by the present plan."""
        if self._began is not None:
            self._start_s = 0.5 * (self._start_s + max(0.0, now - self._began - record.seconds))
            self._began = None
        if record.samples < self._spec.batch_size or record.seconds <= 0:
            return  # the short last batch of an epoch tells nothing
        if self._skipped < _WARM_UP:
            self._skipped += 1
            return
        self._times.append(record.seconds)
        if self._drift is not None and self._drift.drifted(record.seconds):
            self._drifted = True

    def failed(self, kind: str) -> ResourcePlan | None:
        """The present plan could not run for want of memory or concurrency; return what can."""
        if not self._spec.adapt or not self._measured or self.plan in self._measured:
            return None
        self._optimizer.tell_failure(_values(self.plan), "memory" if kind == "memory" else "other")
        return _resources(self._optimizer.recommend().plan)

    def decide(self, standing: Standing, now: float) -> Decision | None:
        """Say what to do; None means to go on. After a decision wait for its generation."""
        if self._asked is not None and self._going_over is False:
            return None  # it stops already
        ending = self._ending(standing)
        if ending is not None:
            self._asked, self._going_over = now, False
            return ending
        if not self._spec.adapt or self._going_over:
            return None
        if self._drifted:
            self._forget("steps take another time than before")
        if self._settled or not self._knows_enough():
            return None
        decision = self._choose(standing)
        if decision is not None:
            self._asked, self._going_over = now, True
        return decision

    def _ending(self, standing: Standing) -> Decision | None:
        """Stop while there is still time and money for this step and for saving."""
        spec = self._spec
        if self._began is None:
            reserve_s = self._save_s + (max(self._times[-5:]) if self._times else 0.0)
        else:  # ranks that still start hear of it late, but have nothing to save
            reserve_s = spec.limits.stop_s
        if spec.budget_usd is not None:
            reserve = reserve_s * self._cost.per_second(self.plan.workers, self.plan.memory_mb)
            if standing.spent_usd + reserve >= spec.budget_usd:
                return Decision(
                    reason=f"stopped before it crosses its budget of ${spec.budget_usd:g}",
                    stop=StepFlag.BUDGET,
                    at_once=self._began is not None,
                )
        if spec.deadline_s is not None and standing.elapsed_s + reserve_s >= spec.deadline_s:
            return Decision(
                reason=f"stopped at its deadline of {in_words(spec.deadline_s)}",
                stop=StepFlag.DEADLINE,
                at_once=self._began is not None,
            )
        return None

    def _knows_enough(self) -> bool:
        count = len(self._times)
        return count >= _MOST_STEPS or (count >= _LEAST_STEPS and sum(self._times) >= _PROBE_S)

    def _forget(self, why: str) -> None:
        """Begin anew: what was measured holds no longer."""
        self._notice(f"{why}: looking for the best plan again")
        self._measured.clear()
        self._optimizer = self._new_optimizer()
        self._settled, self._drifted, self._drift, self._probes = False, False, None, 0
        self._times = self._times[-_LEAST_STEPS:]

    def _choose(self, standing: Standing) -> Decision | None:
        step_s = statistics.median(self._times)
        noise = _relative_spread(self._times)
        self._measured[self.plan] = step_s
        self._limit(standing)
        rate = self._cost.per_second(self.plan.workers, self.plan.memory_mb)
        self._optimizer.tell(
            _values(self.plan),
            step_s * self._factor(self.plan),
            {_TIME: step_s, _COST: step_s * rate},
            noise=max(0.01, noise / math.sqrt(len(self._times))),
        )
        left_s = self._left_s(standing, step_s)
        decision = self._explore(standing, left_s)
        if decision is None:
            decision = self._settle(standing, left_s)
            self._drift = DriftDetector(step_s, max(noise, 0.03)) if decision is None else None
        return decision

    def _explore(self, standing: Standing, left_s: float) -> Decision | None:
        self._optimizer.confine(self._affordable(standing, left_s))
        gain = self._optimizer.expected_gain()
        pays = min(gain, 1.0) * left_s > 2 * self._start_s  # there, and back if it is no better
        if self._probes >= _MOST_PROBES or not pays:
            return None
        plan = _resources(self._optimizer.ask())
        if plan == self.plan or plan in self._measured:
            return None
        self._probes += 1
        hope = "it may meet the limits" if math.isinf(gain) else f"expected to save {gain:.0%}"
        return Decision(plan=plan, reason=f"trying {size(plan)}: {hope}", saving=min(gain, 1.0))

    def _affordable(self, standing: Standing, left_s: float) -> NDArray[np.bool_]:
        """Plans that a trial would not cost much of what is left, and near to one that ran."""
        plans, spec = self._plans, self._spec
        step_s = self._model().predict([_setting(plan) for plan in plans]).step_s
        trial_s = self._start_s + self._save_s + (_WARM_UP + _LEAST_STEPS) * step_s
        rates = np.array([self._cost.per_second(p.workers, p.memory_mb) for p in plans])
        purse = left_s * self._cost.per_second(self.plan.workers, self.plan.memory_mb)
        if spec.budget_usd is not None:
            purse = min(purse, spec.budget_usd - standing.spent_usd)
        affordable = trial_s * rates <= _TRIAL * purse
        if spec.deadline_s is not None:
            affordable &= trial_s <= _TRIAL * (spec.deadline_s - standing.elapsed_s)
        workers = np.log([p.workers for p in plans])
        memory = np.log([p.memory_mb for p in plans])
        near = np.zeros(len(plans), dtype=bool)
        for ran in self._measured:
            at_workers, at_memory = np.log(ran.workers), np.log(ran.memory_mb)
            near |= (abs(workers - at_workers) < _FAR) & (abs(memory - at_memory) < _FAR)
        among: NDArray[np.bool_] = affordable & near
        return among

    def _settle(self, standing: Standing, left_s: float) -> Decision | None:
        best = self._optimizer.recommend()
        plan = _resources(best.plan)
        self._settled = True
        self._warn(standing, plan, best.meets_limits)
        now = self._measured[self.plan] * self._factor(self.plan)
        saving = 1 - best.objective / now
        must = best.meets_limits >= CONFIDENCE and not self._meets(standing, self.plan)
        if plan == self.plan or not (must or saving * left_s > self._start_s):
            return None
        words = f"saves {saving:.0%}" if saving > 0 else "meets the limits"
        return Decision(
            plan=plan, reason=f"{size(plan)} {words} of those tried", saving=max(saving, 0.0)
        )

    def _meets(self, standing: Standing, plan: ResourcePlan) -> bool:
        step_s = self._measured[plan]
        values = {
            _TIME: step_s,
            _COST: step_s * self._cost.per_second(plan.workers, plan.memory_mb),
        }
        return all(values[name] <= most for name, most in self._limits(standing).items())

    def _warn(self, standing: Standing, plan: ResourcePlan, meets: float) -> None:
        """Say as soon as it is known that a goal is out of reach, and what would meet it."""
        if meets >= CONFIDENCE or standing.total_steps is None or plan not in self._measured:
            return
        left = standing.total_steps - standing.step
        spec, step_s = self._spec, self._measured[plan]
        time_s = standing.elapsed_s + left * step_s + self._start_s + self._save_s
        rate = self._cost.per_second(plan.workers, plan.memory_mb)
        usd = standing.spent_usd + (left * step_s + self._start_s + self._save_s) * rate
        fastest = min(self._measured, key=self._measured.__getitem__)
        if spec.deadline_s is not None and time_s > spec.deadline_s:
            self._notice(
                f"the deadline of {in_words(spec.deadline_s)} is out of reach: {size(plan)} need "
                f"about {in_words(time_s)}. --deadline {math.ceil(1.1 * time_s / 60)}m would do"
                + ("" if fastest == plan else f", or more budget, for {size(fastest)}")
            )
        if spec.budget_usd is not None and usd > spec.budget_usd:
            self._notice(
                f"the budget of ${spec.budget_usd:g} is out of reach: {size(plan)} need about "
                f"${usd:.4g}. --budget {1.1 * usd:.3g} would do"
            )

    def _left_s(self, standing: Standing, step_s: float) -> float:
        """What is left of the job; of an open-ended one as much again as has passed."""
        if standing.total_steps is None:
            return standing.elapsed_s
        return max(0, standing.total_steps - standing.step) * step_s

    def _limits(self, standing: Standing) -> dict[str, float]:
        """The most that a step may take and cost, for the goals to be met."""
        spec, limits = self._spec, {}
        if standing.total_steps is None:
            return {}
        left = max(1, standing.total_steps - standing.step)
        over_s = self._start_s + self._save_s
        rate = self._cost.per_second(self.plan.workers, self.plan.memory_mb)
        if spec.deadline_s is not None:
            limits[_TIME] = (spec.deadline_s - standing.elapsed_s - over_s) / left
        if spec.budget_usd is not None:
            limits[_COST] = (spec.budget_usd - standing.spent_usd - over_s * rate) / left
        return {name: max(most, 1e-12) for name, most in limits.items()}

    def _limit(self, standing: Standing) -> None:
        for name, most in self._limits(standing).items():
            self._optimizer.limit(name, most)

    def _new_optimizer(self) -> Optimizer:
        spec = self._spec
        limits = {}
        if spec.deadline_s is not None:
            limits[_TIME] = math.inf
        if spec.budget_usd is not None:
            limits[_COST] = math.inf
        rates = [self._cost.per_second(p.workers, p.memory_mb) for p in self._plans]
        factors = {
            OBJECTIVE: np.array([self._factor(p) for p in self._plans]),
            _TIME: np.ones(len(self._plans)),
            _COST: np.array(rates),
        }
        return Optimizer(
            self._grid,
            self._surrogate,
            self._rng,
            limits=limits,
            priors={name: self._prior(factors[name]) for name in (OBJECTIVE, *limits)},
            start=0,
        )

    def _prior(self, factors: Array) -> PriorMean:
        settings = [_setting(plan) for plan in self._plans]

        def expect(at: Indices, values: Array) -> tuple[Array, Array]:
            model = self._model()
            return model.predict(settings).step_s * factors, model.sensitivities(settings)

        return expect

    def _model(self) -> PerformanceModel:
        if self._fitted is None or self._fitted[0] != self._measured:
            measured = [
                Measurement(setting=_setting(plan), step_s=step_s)
                for plan, step_s in self._measured.items()
            ]
            model = fit_performance(measured, self._granularity)
            self._fitted = dict(self._measured), model
        return self._fitted[1]

    def _factor(self, plan: ResourcePlan) -> float:
        """What a second of a step adds to the objective."""
        rate = self._cost.per_second(plan.workers, plan.memory_mb)
        if self._spec.deadline_s is not None:
            return rate
        return 1.0 if self._spec.budget_usd is not None else math.sqrt(rate)


def size(plan: ResourcePlan) -> str:
    """Say a plan in words."""
    workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
    return f"{workers} of {plan.memory_mb:,} MB"


def in_words(seconds: float) -> str:
    """Write a time as ``45 s``, ``12 min`` or ``1 h 30 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _setting(plan: ResourcePlan) -> Setting:
    return Setting(workers=plan.workers, memory_mb=plan.memory_mb)


def _values(plan: ResourcePlan) -> dict[str, int]:
    return {"workers": plan.workers, "memory_mb": plan.memory_mb}


def _resources(plan: Plan) -> ResourcePlan:
    return ResourcePlan(workers=int(plan["workers"]), memory_mb=int(plan["memory_mb"]))


def _relative_spread(times: list[float]) -> float:
    """Standard deviation of the logarithms, from the median's absolute deviation."""
    logs = [math.log(t) for t in times]
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(value - middle) for value in logs)
