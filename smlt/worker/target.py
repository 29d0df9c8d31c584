"""When a job has reached its aim: ``--until``, ``--patience`` and ``--keep-best``.

Every rank decides from the same reduced numbers, so all of them decide alike; what is remembered
between evaluations is part of the replicated state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smlt.config.goals import BestBy, Until, parse_best, parse_until
from smlt.errors import TaskError
from smlt.messages.job import JobSpec


class Target:
    """Follows the evaluations of a job. ``scalars`` is all it remembers."""

    def __init__(
        self, until: Until | None = None, best_by: BestBy | None = None, patience: int | None = None
    ) -> None:
        self.reached = False
        self._until = until
        self._best_by = best_by
        self._patience = patience
        self._best: float | None = None
        self._stale = 0

    @classmethod
    def of(cls, spec: JobSpec) -> Target:
        until = parse_until(spec.until) if spec.until else None
        best_by = parse_best(spec.keep_best) if spec.keep_best else None
        if best_by is None and until is not None and spec.patience is not None:
            best_by = BestBy(until.metric, until.lower_is_better)
        return cls(until, best_by, spec.patience)

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Take in one evaluation; return whether it is the best so far.

        Raises:
            TaskError: the metric that was asked for is not among those evaluated.
        """
        if self._until is not None:
            measured = _named(metrics, self._until.metric, "--until")
            self.reached = self.reached or self._until.reached(measured)
        if self._best_by is None:
            return False
        measured = _named(metrics, self._best_by.metric, "--keep-best")
        better = self._best_by.improves(measured, self._best)
        if better:
            self._best, self._stale = measured, 0
        else:
            self._stale += 1
            self.reached = self.reached or self._stale == self._patience
        return better

    def scalars(self) -> dict[str, Any]:
        return {"reached": self.reached, "best": self._best, "stale": self._stale}

    def load(self, scalars: Mapping[str, Any]) -> None:
        # A target that the job has no longer was given up for another end.
        self.reached = scalars["reached"] and not (self._until is None and self._patience is None)
        self._best = scalars["best"]
        self._stale = scalars["stale"]


def _named(metrics: Mapping[str, float], name: str, option: str) -> float:
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "nothing"
        raise TaskError(f"{option} asks for the metric {name!r}, but evaluate() returns {known}")
    return metrics[name]
