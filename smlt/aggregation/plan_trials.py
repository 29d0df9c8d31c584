"""The plan of shards that suits model and link, found by the first steps, which try several.

Every rank tells with each step how long its step before took, as a metric of its own name. What
it took all of them comes back with the means, equal on all ranks: they go over to the same plan at
the same step, and nobody has to lead. The plan decides no bit of a lossless mean (the order of
reduction is that of ranks), so it may depend on times; on a lossy wire it must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smlt.aggregation.metric_sums import Metrics
from smlt.aggregation.shard_plan import ShardPlan, plan_shards

# No name of a user's metric begins so.
_TOOK = "\0took"
_SMALLER_BYTES = (1 << 20, 512 << 10)
# So much gradient may do better with one owner: a message for each rank, and one back.
_ONE_OWNER_BYTES = 1 << 20
TRANSFERS = 4
"""Frames of one rank that are under way in each direction."""
_MORE_TRANSFERS = 8
_ROUNDS = 2
# Less is noise, and no reason to change.
_BETTER = 0.95


@dataclass(frozen=True, slots=True)
class Way:
    """How a flat buffer is averaged: a plan, and the frames under way in each direction."""

    plan: ShardPlan
    transfers: int = TRANSFERS


class PlanTrials:
    """The way of each step in turn: ``way`` before it, ``learn`` and ``took`` after it.

    The first step warms up, the next ones take the ways in turn, and the best is kept: by the
    shortest step of each, in the mean over ranks. With one way there is nothing to try.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = list(ways)
        self._shortest = [float("inf")] * len(ways)
        self._steps = 0
        self._seconds: float | None = None
        self._best: int | None = 0 if len(ways) == 1 else None

    @property
    def is_over(self) -> bool:
        """Whether the way will not change any more."""
        return self._best is not None

    @property
    def way(self) -> Way:
        """How to take the next step."""
        return self._ways[self._tried(self._steps) if self._best is None else self._best]

    def told(self) -> Metrics:
        """Return what this rank has to tell with the next step."""
        return {} if self._seconds is None or self.is_over else {_TOOK: (self._seconds, 1.0)}

    def learn(self, metrics: Metrics) -> None:
        """Take what all ranks told with a step out of its metrics."""
        total, weight = metrics.pop(_TOOK, (0.0, 0.0))
        if self.is_over:
            return
        if weight and self._steps > 1:
            index = self._tried(self._steps - 1)
            self._shortest[index] = min(self._shortest[index], total / weight)
        if self._steps > len(self._ways) * _ROUNDS:
            best = min(range(len(self._ways)), key=self._shortest.__getitem__)
            is_better = self._shortest[best] < _BETTER * self._shortest[0]
            self._best = best if is_better else 0

    def took(self, seconds: float) -> None:
        """Note how long the step took at this rank; the next one begins."""
        self._seconds = seconds
        self._steps += 1

    def _tried(self, step: int) -> int:
        # The step after the last trial tells of it, and takes the usual way.
        if not 0 < step <= len(self._ways) * _ROUNDS:
            return 0
        return (step - 1) % len(self._ways)


def trials_of(
    elements: int, world_size: int, *, shard_bytes: int, aggregators: int | None, tries: bool
) -> PlanTrials:
    """Return what ways to take for a gradient of float32: the one that is asked for, first.

    ``tries`` says whether others may be tried.
    """
    asked = plan_shards(
        elements, world_size=world_size, shard_bytes=shard_bytes, aggregators=aggregators
    )
    ways = [Way(asked)]
    if tries and world_size > 1:
        for smaller in _SMALLER_BYTES:
            plan = plan_shards(elements, world_size=world_size, shard_bytes=smaller)
            ways.append(Way(plan, _MORE_TRANSFERS))
        if 4 * elements <= _ONE_OWNER_BYTES:
            plan = plan_shards(
                elements, world_size=world_size, shard_bytes=shard_bytes, aggregators=1
            )
            ways.append(Way(plan))
    different: dict[ShardPlan, Way] = {}
    for way in ways:
        different.setdefault(way.plan, way)
    return PlanTrials(list(different.values()))
