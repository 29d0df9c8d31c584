"""Learn from failures which plans cannot run: too little memory, too many functions at once."""

from __future__ import annotations

import numpy as np

from smlt.control.search_grid import Array, SearchGrid

# What makes a failure of a kind less likely: +1 more of it, -1 less of it.
REMEDIES = {
    "memory": {"memory_mb": 1, "workers": 1},  # with more workers a rank's batch is smaller
    "concurrency": {"workers": -1},
    "other": {},
}


class Feasibility:
    """What ran and what failed, and what follows for the plans that were not tried.

    A plan that is no better off in any remedy than one that failed is impossible. One that is no
    worse off than one that ran is sure. In between the probability rises linearly from the one to
    the other. Before anything failed for want of memory, a plan with less of it than any that ran
    is already doubted, the more so the less it has.
    """

    def __init__(self, grid: SearchGrid) -> None:
        self._grid = grid
        self._names = [d.name for d in grid.dimensions]
        self._sizes = np.array([max(1, len(d.values) - 1) for d in grid.dimensions])
        self._ran: list[int] = []
        self._failed: dict[str, list[int]] = {}

    def ran(self, index: int) -> None:
        self._ran.append(index)

    def failed(self, index: int, kind: str) -> None:
        """Record a failure.

        Raises:
            ValueError: the kind is not one of REMEDIES.
        """
        if kind not in REMEDIES:
            raise ValueError(f"{kind!r} is no kind of failure: {', '.join(REMEDIES)}")
        self._failed.setdefault(kind, []).append(index)

    def probability(self) -> Array:
        """Return the probability that each plan runs; shape (plans,)."""
        probability = np.ones(len(self._grid))
        if self._ran and "memory" not in self._failed and "memory_mb" in self._names:
            health = self._health("memory")
            probability /= 1 + _gap(-health, -health[self._ran])
        for kind, failed in self._failed.items():
            if REMEDIES[kind].keys() & set(self._names):
                probability *= self._graded(self._health(kind), failed)
            probability[failed] = 0.0
        return probability

    def _health(self, kind: str) -> Array:
        """How much of each remedy plans have, as fractions of its range; shape (plans, sizes)."""
        signs = np.array([REMEDIES[kind].get(name, 0) for name in self._names])
        health: Array = self._grid.levels * signs / self._sizes
        return health

    def _graded(self, health: Array, failed: list[int]) -> Array:
        """Probability by how far a plan is above all failures, and below the successes."""
        above_failed = _gap(health, health[failed])
        # Where nothing has run yet, the other end of the range is where it surely would.
        below_ran = _gap(-health, -health[self._ran]) if self._ran else np.ones(len(health))
        return above_failed / np.maximum(above_failed + below_ran, 1e-12)


def _gap(points: Array, references: Array) -> Array:
    """How far each point exceeds the nearest reference, summed over what it exceeds it in.

    Zero where some reference is at least as high in everything.
    """
    excess = np.maximum(points[:, None] - references[None], 0.0).sum(axis=2)
    nearest: Array = excess.min(axis=1)
    return nearest
