"""Objectives for optimisers: one published curve, or surfaces of workers × memory with limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smlt.control.cost_model import lambda_cost
from smlt.control.search_grid import Dimension, SearchGrid

WORKERS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
MEMORY_MB = tuple(range(884, 10_240, 884))
STEPS = 1000


@dataclass(frozen=True)
class Surface:
    """Objective and limited quantity of every plan of a grid; shape (plans,), lower is better."""

    name: str
    grid: SearchGrid
    objective: np.ndarray
    metric: np.ndarray | None
    limit: float | None
    fails: np.ndarray
    """Plans that run out of memory."""

    def utility(self, objective: float) -> float:
        """The utility that an objective stands for, 1 being the best of this surface."""
        best = float(self.objective.min())
        return best / objective if best > 0 else 1 - objective / float(self.objective.max())

    @property
    def feasible(self) -> np.ndarray:
        meets = np.ones(len(self.grid), bool) if self.metric is None else self.metric <= self.limit
        return meets & ~self.fails

    def regret(self, indices: list[int]) -> float:
        """How far the best solution among some plans is behind the best there is, as a fraction.

        Without a solution among them it is the regret of the worst solution there is.
        """
        solutions = [i for i in indices if self.feasible[i]]
        got = self.objective[solutions].min() if solutions else self.objective[self.feasible].max()
        best = self.objective[self.feasible].min()
        return float(1 - best / got) if best > 0 else float((got - best) / np.ptp(self.objective))


def read_curve(path: Path) -> Surface:
    """Read a published utility by workers; it is turned into its reciprocal, to be minimised.

    A utility of 0 is taken for a thousandth of the largest. One that is negative somewhere is no
    rate: it is turned into what it lacks of the largest.

    Raises:
        ValueError: the file cannot be read, or holds no such curve.
    """
    try:
        curve = json.loads(path.read_text(encoding="utf-8"))
        utility = np.array(curve["utility"], dtype=np.float64)
        first = int(curve["first_workers"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"{path} holds no curve: {exc!r:.200}") from exc
    if utility.ndim != 1 or not utility.size or not np.isfinite(utility).all():
        raise ValueError(f"{path}: utility has to be a list of finite numbers")
    least, most = utility.min(), utility.max()
    if first < 1 or least == most <= 0:
        raise ValueError(
            f"{path}: give a first_workers of 1 or more, and a utility that has a best"
        )
    grid = SearchGrid([Dimension("workers", tuple(range(first, first + len(utility))))])
    objective = most - utility if least < 0 else 1 / np.maximum(utility, most / 1000)
    return Surface(path.stem, grid, objective, None, None, np.zeros(len(utility), bool))


def make_surfaces(seed: int, count: int) -> list[Surface]:
    """Draw jobs on Lambda: least cost before a deadline, or least time within a budget, in turn."""
    rng = np.random.default_rng(seed)
    return [_surface(rng, index) for index in range(count)]


def _surface(rng: np.random.Generator, index: int) -> Surface:
    grid = SearchGrid([Dimension("workers", WORKERS), Dimension("memory_mb", MEMORY_MB)])
    workers, memory = grid.column("workers"), grid.column("memory_mb")
    step = _step_s(rng)(workers, memory)
    time = STEPS * step
    cost = np.array(
        [
            lambda_cost(1000 * t * n, m, int(n))
            for t, n, m in zip(time, workers, memory, strict=True)
        ]
    )
    fails = memory < rng.uniform(500, 1500) + rng.uniform(1000, 8000) / workers
    objective, metric, name = (cost, time, "cost") if index % 2 == 0 else (time, cost, "time")
    limit = float(np.quantile(metric[~fails], rng.uniform(0.15, 0.6)))
    return Surface(f"{name}-{index}", grid, objective, metric, limit, fails)


def _step_s(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A step that is deliberately not of our performance model's form."""
    work, serial = rng.uniform(5, 60), rng.uniform(0.02, 0.3)
    link, store = rng.uniform(0.05, 1.0), rng.uniform(0.001, 0.03)
    power, knee = rng.uniform(1.0, 1.4), rng.uniform(1200, 2500)

    def step(workers: np.ndarray, memory: np.ndarray) -> np.ndarray:
        vcpus = memory / 1769
        speed = np.where(vcpus < 1, vcpus, 1 / (serial + (1 - serial) / vcpus))
        compute = work * np.ceil(64 / workers) / 64 / speed
        slow_link = link * (1 + np.maximum(0, knee / memory - 1)) * (workers > 1)
        return compute + np.hypot(slow_link, store * (workers - 1) ** power)

    return step
