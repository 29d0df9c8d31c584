"""Choose the next plan to try: Bayesian optimisation with constraints over a grid, ask and tell.

The acquisition function is expected improvement times the probability of meeting every limit
(Gardner et al. 2014) and of running at all, computed for the whole grid. Under noise, and without
limits, it is the knowledge gradient: a measurement may also teach that another plan is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped]

from smlt.control.acquisition import expected_improvement, knowledge_gradient
from smlt.control.feasibility import Feasibility
from smlt.control.search_grid import Array, Plan, SearchGrid, Value
from smlt.control.surrogate import Indices, Posterior, PriorErrors, Surrogate

OBJECTIVE = "objective"
PRIOR_TRUST = (
    0.03  # a prior mean is right within this, apart from its own modes, unless data say otherwise
)
LOOKED_AT = 128  # plans, for the knowledge gradient: it takes every pair of them
_ANY_SOLUTION = 0.5  # what the worst solution is worth, the best one being worth 1 more
CONFIDENCE = 0.8  # that a plan meets the limits, for it to be taken as a solution


class PriorMean(Protocol):
    """What a model expects of every plan, given what was measured."""

    def __call__(self, at: Indices, values: Array) -> tuple[Array, Array]:
        """Return the expected values, in the unit of the measured ones, and modes of their error.

        The values have the shape (plans,). The modes, shape (plans, modes), say how a change of one
        of the model's parameters, by its standard deviation before anything was measured, changes
        the logarithms of the values (without `log`: the values).
        """


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best plan of those measured; under noise and without limits, of all that surely run."""

    plan: Plan
    objective: float
    """Its expected value, noise smoothed away."""
    meets_limits: float
    """Probability that it meets all limits; below CONFIDENCE no measured plan is sure to."""


@dataclass(frozen=True, slots=True)
class _Observation:
    index: int
    values: dict[str, float]
    noise: float | None


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What is thought of all plans at one moment; arrays of shape (plans,)."""

    objective: Posterior
    meets_limits: Array
    excess: Array
    """By how much the expected quantities exceed their limits, in all."""
    runs: Array


class Optimizer:
    """Minimises a positive objective, such as seconds or dollars, over a grid of plans.

    Everything is modelled by its logarithm, so that errors and gains are relative; `log=False` is
    for objectives that may be zero or negative, gains and noise being absolute then.
    """

    def __init__(
        self,
        grid: SearchGrid,
        surrogate: Surrogate,
        rng: np.random.Generator,
        *,
        limits: Mapping[str, float] | None = None,
        priors: Mapping[str, PriorMean] | None = None,
        start: int | None = None,
        log: bool = True,
    ) -> None:
        """Prepare a search.

        Args:
            grid: the plans.
            surrogate: models the objective and each limited quantity on that grid.
            rng: draws the first plans, and nothing else.
            limits: the most that other quantities may be, by name: a deadline, a budget.
            priors: prior means of the objective (OBJECTIVE) and of limited quantities, by name.
            start: how many plans to spread over the grid before the model decides; by default
                two if the objective has a prior mean, else one more than the grid has dimensions
                and at least three.
            log: model logarithms.
        """
        self._grid = grid
        self._surrogate = surrogate
        self._limits = dict(limits or {})
        self._priors = dict(priors or {})
        self._log = log
        usual = 2 if OBJECTIVE in self._priors else max(3, len(grid.dimensions) + 1)
        self._start = grid.spread(usual if start is None else start, rng)
        self._feasibility = Feasibility(grid)
        self._observations: list[_Observation] = []
        self._tried: set[int] = set()
        self._outlook: _Outlook | None = None
        self._among = np.ones(len(grid), dtype=bool)

    def confine(self, among: NDArray[np.bool_]) -> None:
        """Ask from now on only for plans of this mask, shape (plans,)."""
        self._among = among

    def tell(
        self,
        plan: Mapping[str, Value],
        objective: float,
        metrics: Mapping[str, float] | None = None,
        *,
        noise: float | None = 0.0,
    ) -> None:
        """Record what a plan gave.

        Args:
            plan: the plan that ran.
            objective: what it gave.
            metrics: the limited quantities, by name.
            noise: standard deviation of the objective's and the metrics' error, as a fraction;
                None if it is not known.

        Raises:
            ValueError: the plan is not on the grid, a limited quantity is missing, or a value is
                not finite, or not positive.
        """
        metrics = metrics or {}
        missing = [name for name in self._limits if name not in metrics]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} is missing: it is limited, so it has to be told"
            )
        values = {OBJECTIVE: objective, **{name: metrics[name] for name in self._limits}}
        for name, value in values.items():
            if not np.isfinite(value) or (self._log and value <= 0):
                raise ValueError(f"the {name} of {dict(plan)} is {value}: it has to be positive")
        index = self._grid.index(plan)
        self._observations.append(_Observation(index, values, noise))
        self._feasibility.ran(index)
        self._tried.add(index)
        self._outlook = None

    def limit(self, name: str, most: float) -> None:
        """Change the limit of a quantity that is limited already: time and money run out."""
        self._limits[name] = most
        self._outlook = None

    def tell_failure(self, plan: Mapping[str, Value], kind: str = "other") -> None:
        """Record that a plan could not run: for want of "memory", of "concurrency", or "other".

        Raises:
            ValueError: the plan is not on the grid, or the kind is none of these.
        """
        index = self._grid.index(plan)
        self._feasibility.failed(index, kind)
        self._tried.add(index)
        self._outlook = None

    def ask(self) -> Plan:
        """Return the plan to try next; the same one until something is told.

        Once all plans have been measured without noise it returns the best.
        """
        runs = self._feasibility.probability()
        for index in self._start:
            if index not in self._tried and runs[index] > 0:
                return self._grid.plan(index)
        if not self._observations:
            untried = [i for i in np.argsort(-runs, kind="stable") if i not in self._tried]
            return self._grid.plan(int(untried[0]) if untried else 0)
        acquisition = self._acquisition()
        if not np.any(acquisition > 0):
            return self.recommend().plan
        return self._grid.plan(int(acquisition.argmax()))

    def recommend(self) -> Recommendation:
        """Return the best plan so far, or the one nearest to the limits if none meets them.

        Raises:
            ValueError: nothing has been measured.
        """
        outlook, best = self._current(), self._best()
        return Recommendation(
            self._grid.plan(best),
            float(self._unscale(outlook.objective.mean[best])),
            float(outlook.meets_limits[best]),
        )

    def expected_gain(self) -> float:
        """How much the plan that `ask` returns is expected to better the recommended one.

        A fraction of the objective (without `log`: absolute). Infinite while nothing that was
        measured meets the limits, and before the first plans are through.
        """
        waiting = [index for index in self._start if index not in self._tried]
        if waiting or not self._observations or self.recommend().meets_limits < CONFIDENCE:
            return float("inf")
        gain = float(self._improvement().max())
        return -float(np.expm1(-gain)) if self._log else gain

    def hope(self) -> float:
        """The best chance that a plan, whichever, has of running within all limits.

        Raises:
            ValueError: nothing has been measured.
        """
        outlook = self._current()
        return float((outlook.meets_limits * outlook.runs).max())

    def is_worth_trying(self, remaining: float, switch: float) -> bool:
        """Whether the next plan is expected to pay for the switch to it.

        Args:
            remaining: what the rest of the job takes by the recommended plan.
            switch: what going over to another plan takes, in the same unit.
        """
        return self.expected_gain() * remaining > switch

    def _acquisition(self) -> Array:
        """Score of every plan; zero for those that there is no point in trying."""
        outlook = self._current()
        if outlook.meets_limits[self._best()] >= CONFIDENCE:
            return self._improvement()
        # Nothing to improve on yet: look for a plan that meets the limits, the better ones first,
        # and where none has a chance that could be told from zero, for the least excess.
        mean = outlook.objective.mean
        merit = (mean.max() - mean) / (np.ptp(mean) or 1.0) + _ANY_SOLUTION
        hopeless = 1e-9 / (1 + outlook.excess)
        score: Array = outlook.runs * (outlook.meets_limits * merit + hopeless)
        score[[o.index for o in self._observations]] = 0.0
        score[~self._among] = 0.0
        return score

    def _improvement(self) -> Array:
        """How much each plan promises, times its chance to be a solution at all."""
        outlook, noise = self._current(), self._typical_noise()
        chances = outlook.meets_limits * outlook.runs
        score = chances * expected_improvement(outlook.objective, self._best(), noise)
        if noise and not self._limits:
            likely = np.argsort(-score, kind="stable")[:LOOKED_AT]
            solutions = self._solutions()
            lowest = np.argsort(outlook.objective.mean[solutions], kind="stable")[:LOOKED_AT]
            gain = knowledge_gradient(outlook.objective, likely, solutions[lowest], noise)
            score = np.zeros_like(score)
            score[likely] = gain * chances[likely]
        score[[o.index for o in self._observations if o.noise == 0]] = 0.0
        score[~self._among] = 0.0
        return score

    def _best(self) -> int:
        """The plan to recommend: the best solution, or what is nearest to being one."""
        outlook = self._current()
        solutions = self._solutions()
        if len(solutions):
            return int(solutions[outlook.objective.mean[solutions].argmin()])
        measured = sorted({o.index for o in self._observations})
        return max(measured, key=lambda i: (outlook.meets_limits[i], -outlook.excess[i]))

    def _solutions(self) -> Indices:
        """Plans that may be recommended.

        Those that were measured. Where noise blurs them and there is no limit to break, any plan
        that is sure to run may be better than the luckiest measurement.
        """
        outlook = self._current()
        sure = (outlook.meets_limits >= CONFIDENCE) & (outlook.runs >= 1)
        if self._limits or self._typical_noise() == 0:
            measured = np.zeros(len(sure), dtype=bool)
            measured[[o.index for o in self._observations]] = True
            sure &= measured
        return np.flatnonzero(sure)

    def _current(self) -> _Outlook:
        if not self._observations:
            raise ValueError("nothing has been measured yet: tell the optimiser a plan's outcome")
        if self._outlook is None:
            meets, excess = np.ones(len(self._grid)), np.zeros(len(self._grid))
            for name, limit in self._limits.items():
                posterior = self._posterior(name)
                bound = np.log(limit) if self._log else limit
                standard = (bound - posterior.means) / posterior.deviations
                meets *= posterior.weights @ ndtr(standard)
                excess += np.maximum(0.0, posterior.mean - bound)
            self._outlook = _Outlook(
                self._posterior(OBJECTIVE), meets, excess, self._feasibility.probability()
            )
        return self._outlook

    def _posterior(self, name: str) -> Posterior:
        at = np.array([o.index for o in self._observations], dtype=np.intp)
        values = np.array([o.values[name] for o in self._observations])
        prior = self._priors.get(name)
        if prior is None:
            return self._surrogate.posterior(at, self._scale(values), self._noise())
        mean, modes = prior(at, values)
        expected = self._scale(mean)
        error = self._scale(values) - expected[at]
        known = PriorErrors(max(PRIOR_TRUST, float(np.sqrt(np.mean(error**2)))), modes)
        posterior = self._surrogate.posterior(at, error, self._noise(), known)
        return posterior._replace(means=posterior.means + expected)

    def _noise(self) -> Array | None:
        """Standard deviations of the scaled observations; None if one of them is unknown."""
        noise = [o.noise for o in self._observations]
        known = [n for n in noise if n is not None]
        return np.array(known) if len(known) == len(noise) else None

    def _typical_noise(self) -> float:
        """Root mean square of the noise told; where it is not known, of the residuals."""
        noise = self._noise()
        if noise is None:
            at = [o.index for o in self._observations]
            values = self._scale(np.array([o.values[OBJECTIVE] for o in self._observations]))
            noise = np.maximum(np.abs(values - self._current().objective.mean[at]), 1e-6)
        return float(np.sqrt(np.mean(noise**2)))

    def _scale(self, values: Array) -> Array:
        return np.log(values) if self._log else values

    def _unscale(self, value: float) -> float:
        return float(np.exp(value)) if self._log else value
