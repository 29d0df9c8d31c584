"""The optimisers that are compared, each as a function from a surface to the plans it tried.

Every peer runs its own loop on the grid's numbers as it would be used by hand; where it knows
constraints it is told them, elsewhere what breaks a limit gets a penalty. All start with as many
points as ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.tuner_surfaces import Surface
from smlt.control.optimizer import OBJECTIVE, Optimizer
from smlt.control.performance_prior import PerformancePrior
from smlt.control.search_grid import Plan
from smlt.control.skopt_surrogate import SkoptGaussianProcess
from smlt.control.step_measurement import Setting
from smlt.control.surrogate import SampledGaussianProcess

PENALTY = 1.0  # on a logarithmic objective: 2.7 times as bad as the worst seen


def surface_value(surface: Surface, objective: float) -> float:
    """What a peer is to minimise: of a curve its utility, negated; of a surface the logarithm.

    Each is the form in which the peers do better.
    """
    if surface.metric is None:
        return -surface.utility(objective)
    return float(np.log(objective))


class Experiment:
    """Measures plans of a surface with multiplicative noise, and remembers which."""

    def __init__(self, surface: Surface, noise: float, seed: int) -> None:
        self.surface = surface
        self.noise = noise
        self.rng = np.random.default_rng(seed)
        self.tried: list[int] = []
        self.chosen: list[int] = []
        self._seen: list[tuple[float, int]] = []

    def measure(self, index: int) -> tuple[float, float | None] | None:
        """Return objective and limited quantity, or None if the plan fails."""
        surface = self.surface
        self.tried.append(index)
        if surface.fails[index]:
            return None
        factor = max(0.05, 1 + self.noise * self.rng.standard_normal())
        metric = None if surface.metric is None else float(surface.metric[index] * factor)
        return float(surface.objective[index] * factor), metric

    def penalised(self, index: int) -> float:
        """Measure, and return a logarithm with a penalty for what is no solution."""
        outcome = self.measure(index)
        worst = max((value for value, _ in self._seen), default=0.0)
        if outcome is None:
            value = worst + PENALTY
        else:
            value = surface_value(self.surface, outcome[0])
            if outcome[1] is not None and outcome[1] > self.surface.limit:
                value = max(value, worst) + PENALTY
            else:
                self._seen.append((value, index))
        self.choose(min(self._seen)[1] if self._seen else index)
        return value

    def choose(self, index: int) -> None:
        """Note which plan the optimiser would name the best by now."""
        self.chosen.append(index)

    def regrets(self) -> list[float]:
        """Regret after each evaluation: of the best one tried, or under noise of the one named."""
        count = range(len(self.tried))
        picks = [self.tried[: i + 1] if self.noise == 0 else [self.chosen[i]] for i in count]
        return [self.surface.regret(pick) for pick in picks]


def _ours(surrogate: Callable, with_prior: bool = False) -> Callable[[Experiment, int], None]:
    def run(experiment: Experiment, evaluations: int) -> None:
        surface, grid = experiment.surface, experiment.surface.grid
        limits = None if surface.limit is None else {"limit": surface.limit}
        log = bool(surface.objective.min() > 0)
        # The performance model knows times, which are positive.
        priors = _priors(surface) if with_prior and log else None
        optimizer = Optimizer(
            grid, surrogate(grid), experiment.rng, limits=limits, priors=priors, log=log
        )
        ran = False
        for _ in range(evaluations):
            plan = optimizer.ask()
            index = grid.index(plan)
            outcome = experiment.measure(index)
            if outcome is None:
                optimizer.tell_failure(plan, "memory")
            else:
                metrics = {} if outcome[1] is None else {"limit": outcome[1]}
                noise = experiment.noise * (1.0 if log else abs(outcome[0]))
                optimizer.tell(plan, outcome[0], metrics, noise=noise)
            ran = ran or outcome is not None
            experiment.choose(grid.index(optimizer.recommend().plan) if ran else index)

    return run


def _priors(surface: Surface) -> dict[str, PerformancePrior]:
    """The performance model, for the time of a step and for its cost, fitted as it goes."""
    grid = surface.grid
    if surface.metric is None:
        return {OBJECTIVE: PerformancePrior(grid, lambda plan: Setting(workers=plan["workers"]))}
    time = PerformancePrior(grid, _setting)
    cost = PerformancePrior(grid, _setting, lambda plan: plan["workers"] * plan["memory_mb"])
    objective, limited = (cost, time) if surface.name.startswith("cost") else (time, cost)
    return {OBJECTIVE: objective, "limit": limited}


def _setting(plan: Plan) -> Setting:
    return Setting(workers=plan["workers"], memory_mb=plan["memory_mb"])


def _random(experiment: Experiment, evaluations: int) -> None:
    count = len(experiment.surface.grid)
    for index in experiment.rng.permutation(count)[:evaluations]:
        experiment.penalised(int(index))


def _skopt(experiment: Experiment, evaluations: int) -> None:
    import skopt  # noqa: PLC0415

    grid = experiment.surface.grid
    variance = experiment.noise**2 or 1e-10
    optimizer = skopt.Optimizer(
        [skopt.space.Integer(0, len(d.values) - 1) for d in grid.dimensions],
        n_initial_points=max(3, len(grid.dimensions) + 1),
        random_state=int(experiment.rng.integers(2**31)),
        base_estimator=skopt.utils.cook_estimator(
            "GP", [(0, len(d.values) - 1) for d in grid.dimensions], noise=variance
        ),
    )
    for _ in range(evaluations):
        levels = optimizer.ask()
        optimizer.tell(levels, experiment.penalised(_index(grid, levels)))


def _optuna(experiment: Experiment, evaluations: int) -> None:
    import optuna  # noqa: PLC0415

    surface = experiment.surface
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.GPSampler(
        seed=int(experiment.rng.integers(2**31)),
        n_startup_trials=max(3, len(surface.grid.dimensions) + 1),
        deterministic_objective=experiment.noise == 0,
        constraints_func=(lambda t: t.user_attrs["c"]) if surface.limit is not None else None,
    )
    study = optuna.create_study(sampler=sampler)
    seen: list[tuple[float, int]] = []

    def objective(trial):
        levels = [trial.suggest_int(d.name, 0, len(d.values) - 1) for d in surface.grid.dimensions]
        index = _index(surface.grid, levels)
        outcome = experiment.measure(index)
        if outcome is None:
            trial.set_user_attr("c", (1.0,))
            experiment.choose(min(seen)[1] if seen else index)
            return max((v for v, _ in seen), default=0.0) + PENALTY
        value = surface_value(surface, outcome[0])
        excess = 0.0 if outcome[1] is None else float(np.log(outcome[1] / surface.limit))
        trial.set_user_attr("c", (excess,))
        if excess <= 0:
            seen.append((value, index))
        experiment.choose(min(seen)[1] if seen else index)
        return value

    study.optimize(objective, n_trials=evaluations)


def _bayes_opt(experiment: Experiment, evaluations: int) -> None:
    import bayes_opt  # noqa: PLC0415

    grid = experiment.surface.grid
    optimizer = bayes_opt.BayesianOptimization(
        f=None,
        pbounds={d.name: (0, len(d.values) - 1, int) for d in grid.dimensions},
        random_state=int(experiment.rng.integers(2**31)),
        allow_duplicate_points=True,
        verbose=0,
    )
    if experiment.noise:
        optimizer.set_gp_params(alpha=experiment.noise**2)
    first = optimizer.space.random_sample
    for number in range(evaluations):
        random_first = number < max(3, len(grid.dimensions) + 1)
        point = (
            optimizer.space.array_to_params(np.ravel(first()))
            if random_first
            else optimizer.suggest()
        )
        levels = [int(point[d.name]) for d in grid.dimensions]
        optimizer.register(point, -experiment.penalised(_index(grid, levels)))


def _index(grid, levels) -> int:
    return grid.index(
        {d.name: d.values[int(i)] for d, i in zip(grid.dimensions, levels, strict=True)}
    )


OPTIMIZERS: dict[str, tuple[str, Callable[[Experiment, int], None]]] = {
    "smlt": ("numpy", _ours(SampledGaussianProcess)),
    "smlt-prior": ("numpy", _ours(SampledGaussianProcess, with_prior=True)),
    "smlt-skopt-gp": ("skopt", _ours(SkoptGaussianProcess)),
    "scikit-optimize": ("skopt", _skopt),
    "optuna-gp": ("optuna", _optuna),
    "bayesian-optimization": ("bayes_opt", _bayes_opt),
    "random": ("numpy", _random),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(OPTIMIZERS[name][0]) is not None


def regrets(name: str, surface: Surface, noise: float, seed: int, evaluations: int) -> list[float]:
    """Run an optimiser; return its regret after each evaluation, as fractions."""
    experiment = Experiment(surface, noise, seed)
    # bayesian-optimization reports repeats on the standard output.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        OPTIMIZERS[name][1](experiment, evaluations)
    after = experiment.regrets()
    return after + [after[-1]] * (evaluations - len(after))  # whoever has tried all plans
