"""Search the best plan of a job that runs: which one to try next, and which is best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smlt.control.goals import COST, TIME, Goals, Standing
from smlt.control.optimizer import CONFIDENCE, OBJECTIVE, Optimizer, PriorMean
from smlt.control.performance_model import PerformanceModel, fit_performance
from smlt.control.plan_grid import as_plan, as_setting, plan_grid, plans_of
from smlt.control.search_grid import Array, Plan, SearchGrid
from smlt.control.step_cost import StepCost
from smlt.control.step_measurement import Granularity, Measurement, Setting
from smlt.control.surrogate import Indices, SampledGaussianProcess, Surrogate
from smlt.messages.job import JobSpec, ResourcePlan

_FAR = math.log(4.1)  # a trial has at most four times the workers, or memory, of one before
_FRACTION = 0.1  # of the time and money left, the most that one trial may take


class Choice(NamedTuple):
    """The best plan of those that were tried."""

    plan: ResourcePlan
    score: float
    """What a step of it adds to what is to be least."""
    is_safe: bool
    """Whether it meets the limits, as far as can be told."""


class PlanSearch:
    """Told how long steps take, it names plans. The performance model is its prior mean."""

    def __init__(
        self,
        spec: JobSpec,
        first: ResourcePlan,
        cost: StepCost,
        *,
        seed: int = 0,
        surrogate: Callable[[SearchGrid], Surrogate] = SampledGaussianProcess,
    ) -> None:
        self.measured: dict[ResourcePlan, float] = {}
        """Seconds of a step, by plan."""
        self._samples = spec.batch_size
        self._earlier: list[Measurement] = []
        """Of steps with batches of other sizes: the model learns from them, too."""
        self._goals = Goals.of(spec)
        self._cost = cost
        self._grid = plan_grid(spec, first)
        self._plans = plans_of(self._grid)
        self._numbers = {plan: number for number, plan in enumerate(self._plans)}
        self._price()
        self._surrogate = surrogate(self._grid)
        self._granularity = Granularity(virtual_workers=spec.virtual_workers)
        self._rng = np.random.default_rng(seed)
        self._fitted: tuple[list[Measurement], PerformanceModel] | None = None
        self.forget()

    def carries(self, gradient_bytes: float) -> None:
        """Steps exchange gradients of that size, which some parameter stores take money for."""
        if gradient_bytes != self._cost.gradient_bytes:
            self._cost = replace(self._cost, gradient_bytes=gradient_bytes)
            self._price()

    def _price(self) -> None:
        """Price all plans; shapes (plans,)."""
        self._rates = np.array([self.rate(plan) for plan in self._plans])
        self._moving = np.array([self._cost.moving(plan) for plan in self._plans])

    def forget(self) -> None:
        """Begin anew: what was measured holds no longer."""
        self.measured.clear()
        self._earlier.clear()
        self._begin()

    def rebatch(self, samples: int) -> None:
        """Begin anew with steps of so many samples: the model knows what to expect of them."""
        self._earlier = self._measurements()
        self.measured.clear()
        self._samples = samples
        self._begin()

    def present_steps(self, plan: ResourcePlan, stretches: Sequence[tuple[int, int]]) -> float:
        """Return how many steps of the present batch take as long as steps of several.

        Args:
            plan: that takes them.
            stretches: numbers of steps, and how many samples each of them has.
        """
        if not self.measured or all(samples == self._samples for _, samples in stretches):
            return sum(steps for steps, _ in stretches)
        sizes = [self._samples, *(samples for _, samples in stretches)]
        step_s = self._model().predict([as_setting(plan, size) for size in sizes]).step_s
        return sum(
            steps * float(each / step_s[0])
            for (steps, _), each in zip(stretches, step_s[1:], strict=True)
        )

    def _begin(self) -> None:
        quantities = {
            OBJECTIVE: lambda step_s: self._goals.score(step_s, self._step_usd(step_s)),
            TIME: lambda step_s: step_s,
            COST: self._step_usd,
        }
        self._optimizer = Optimizer(
            self._grid,
            self._surrogate,
            self._rng,
            limits=dict.fromkeys(self._goals.limited, math.inf),
            priors={
                name: self._prior(quantities[name]) for name in (OBJECTIVE, *self._goals.limited)
            },
            start=0,
        )

    def rate(self, plan: ResourcePlan) -> float:
        """Return what a second of a plan costs, in dollars."""
        return self._cost.per_second(plan)

    def step_usd(self, plan: ResourcePlan, step_s: float) -> float:
        """Return what a step of a plan costs that takes so long."""
        return self._cost.per_step(plan, step_s)

    def _step_usd(self, step_s: Array) -> Array:
        """The same of all plans; shape (plans,)."""
        usd: Array = step_s * self._rates + self._moving
        return usd

    def score(self, plan: ResourcePlan) -> float:
        """Return what a step of a measured plan adds to what is to be least."""
        step_s = self.measured[plan]
        return self._goals.score(step_s, self.step_usd(plan, step_s))

    def tell(
        self, plan: ResourcePlan, step_s: float, noise: float, limits: dict[str, float]
    ) -> None:
        """Take in a plan's step time, its relative error, and what a step may take from now on."""
        self.measured[plan] = step_s
        for name, most in limits.items():
            self._optimizer.limit(name, most)
        self._optimizer.tell(
            self._values(plan),
            self.score(plan),
            {TIME: step_s, COST: self.step_usd(plan, step_s)},
            noise=noise,
        )

    def tell_failure(self, plan: ResourcePlan, kind: str) -> None:
        """Take in that a plan could not run, for want of ``memory`` or for another reason."""
        self._optimizer.tell_failure(self._values(plan), kind if kind == "memory" else "other")

    def best(self) -> Choice:
        best = self._optimizer.recommend()
        return Choice(as_plan(best.plan), best.objective, best.meets_limits >= CONFIDENCE)

    def hope(self) -> float:
        """The best chance that a plan, whichever, has of meeting deadline and budget."""
        return self._optimizer.hope()

    def next_trial(self, among: NDArray[np.bool_] | None = None) -> tuple[ResourcePlan, float]:
        """Return the plan to try next and by which fraction it is expected to better the best.

        Args:
            among: plans that come into question, shape (plans,); those far from all that ran
                never do: the model knows too little of them.
        """
        near = self._near()
        self._optimizer.confine(near if among is None else near & among)
        gain = self._optimizer.expected_gain()
        return as_plan(self._optimizer.ask()), gain

    def affordable(
        self, standing: Standing, left_s: float, left_usd: float, over_s: float, steps: int
    ) -> NDArray[np.bool_]:
        """Tell the plans of which a trial would not cost much of what is left; shape (plans,).

        Args:
            standing: how far the job is.
            left_s: what is left of the job by the present plan.
            left_usd: what that costs.
            over_s: to go over to another plan, and to save before.
            steps: of a trial.
        """
        trial_s = over_s + steps * self._model().predict(self._settings()).step_s
        trial_usd = trial_s * self._rates + steps * self._moving
        goals = self._goals
        if goals.budget_usd is not None:
            left_usd = min(left_usd, goals.budget_usd - standing.spent_usd)
        affordable: NDArray[np.bool_] = trial_usd <= _FRACTION * left_usd
        if goals.deadline_s is not None:
            affordable &= trial_s <= _FRACTION * (goals.deadline_s - standing.elapsed_s)
        return affordable

    def _near(self) -> NDArray[np.bool_]:
        workers = np.log([p.workers for p in self._plans])
        memory = np.log([p.memory_mb for p in self._plans])
        near = np.zeros(len(self._plans), dtype=bool)
        for ran in self.measured:
            at_workers, at_memory = np.log(ran.workers), np.log(ran.memory_mb)
            near |= (abs(workers - at_workers) < _FAR) & (abs(memory - at_memory) < _FAR)
        return near

    def _prior(self, quantity: Callable[[Array], Array]) -> PriorMean:
        def expect(at: Indices, values: Array) -> tuple[Array, Array]:
            model, settings = self._model(), self._settings()
            return quantity(model.predict(settings).step_s), model.sensitivities(settings)

        return expect

    def _values(self, plan: ResourcePlan) -> Plan:
        return self._grid.plan(self._numbers[plan])

    def _settings(self) -> list[Setting]:
        return [as_setting(plan, self._samples) for plan in self._plans]

    def _measurements(self) -> list[Measurement]:
        now = [
            Measurement(setting=as_setting(plan, self._samples), step_s=step_s)
            for plan, step_s in self.measured.items()
        ]
        return self._earlier + now

    def _model(self) -> PerformanceModel:
        """Fit the model to all that was measured; once, for as long as that stays the same."""
        measured = self._measurements()
        if self._fitted is None or self._fitted[0] != measured:
            self._fitted = measured, fit_performance(measured, self._granularity)
        return self._fitted[1]
