"""The way of averaging that suits model and link, found by the first steps, which try several.

Every rank tells with each step how long its step before took, as a metric of its own name. What
it took all of them comes back with the means, equal on all ranks: they go over to the same way at
the same step, and nobody has to lead. Plan and concurrency decide no bit of a lossless mean (the
order of reduction is that of ranks), so they may depend on times; on a lossy wire only the
concurrency may. The dtype on the wire decides what is learnt: it is tried only where that was
asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from smlt.aggregation.metric_sums import Metrics
from smlt.aggregation.shard_plan import ShardPlan, plan_shards
from smlt.aggregation.wire import LOSSLESS, check_dtype
from smlt.config.sharding import AUTO
from smlt.io.frame import Dtype

# No name of a user's metric begins so.
_TOOK = "\0took"
# A larger one costs fewer messages, where links are faster than processors.
_OTHER_BYTES = (16 << 20, 8 << 20, 1 << 20, 512 << 10)
# So much gradient may do better with one owner: a message for each rank, and one back.
_ONE_OWNER_BYTES = 1 << 20
TRANSFERS = 4
"""Frames of one rank that are under way in each direction."""
# Those that share a slow link all arrive late; a long one has room for more.
_OTHER_TRANSFERS = (2, 8)
_EACH = 2
# Less is noise, and no reason to change.
_BETTER = 0.95
# Of what changes the result, however little.
_MUCH_BETTER = 0.8


@dataclass(frozen=True, slots=True)
class Way:
    """How a flat buffer is averaged: a plan, the frames under way in each direction, a dtype."""

    plan: ShardPlan
    transfers: int = TRANSFERS
    dtype: Dtype = LOSSLESS

    def __str__(self) -> str:
        shards, owners = self.plan.shards, len(self.plan.owners)
        size = f"{self.shard_bytes / (1 << 20):.3g} MB in {self.dtype}"
        if shards == 1:
            return f"1 shard of {size}"
        return (
            f"{shards} shards of {size}, {owners} owner{'s'[: owners > 1]},"
            f" {self.transfers} at a time"
        )

    @property
    def shard_bytes(self) -> int:
        """Bytes of the largest shard on the wire."""
        elements = min(self.plan.shard_elements, self.plan.elements)
        return elements * (4 if self.dtype == LOSSLESS else 2)


@dataclass(frozen=True, slots=True)
class Round:
    """What to try beside the best way so far, and how much less time it must take."""

    others: Callable[[Way], Sequence[Way]]
    better: float = _BETTER


class PlanTrials:
    """The way of each step in turn: ``way`` before it, ``learn`` and ``took`` after it.

    The first step warms up. In each round the next ones take its ways in turn, twice, and the best
    is kept: by the shortest step of each, in the mean over ranks. With one way there is nothing to
    try.
    """

    def __init__(self, first: Way, rounds: Sequence[Round] = ()) -> None:
        self._best = first
        self._rounds = deque(rounds)
        self._shortest: dict[Way, float] = {}
        self._queue = deque([first])
        self._taken = first
        self._seconds: float | None = None
        self._steps = 0
        self._begin_round()

    @property
    def is_over(self) -> bool:
        """Whether the way will not change any more."""
        return not self._rounds

    @property
    def way(self) -> Way:
        """How to take the next step."""
        return self._best if self.is_over or not self._queue else self._queue[0]

    @property
    def times(self) -> Mapping[Way, float]:
        """The shortest step, in seconds, of each way that was tried, in the mean over ranks."""
        return dict(self._shortest)

    def __str__(self) -> str:
        if not self._shortest:
            return str(self._best)
        usual = next(iter(self._shortest.values()))
        return f"{self._best}; a step in {self._time_of(self._best):.3g} s, as usual {usual:.3g} s"

    def told(self) -> Metrics:
        """Return what this rank has to tell with the next step."""
        return {} if self._seconds is None or self.is_over else {_TOOK: (self._seconds, 1.0)}

    def learn(self, metrics: Metrics) -> None:
        """Take what all ranks told with a step out of its metrics."""
        total, weight = metrics.pop(_TOOK, (0.0, 0.0))
        if weight and self._steps > 1 and not self.is_over:
            before = self._shortest.get(self._taken, float("inf"))
            self._shortest[self._taken] = min(before, total / weight)

    def took(self, way: Way, seconds: float) -> bool:
        """Note how long a step took at this rank; return whether that was the last of the trials.

        The next step begins.
        """
        if self.is_over:
            return False
        self._taken, self._seconds = way, seconds
        self._steps += 1
        if self._queue:
            self._queue.popleft()
        else:  # a step that told of the round's last trial
            self._settle(self._rounds.popleft())
            self._begin_round()
        return self.is_over

    def _settle(self, tried: Round) -> None:
        others = self._new_in(tried)
        quickest = min(others, key=self._time_of)
        if self._time_of(quickest) < tried.better * self._time_of(self._best):
            self._best = quickest

    def _begin_round(self) -> None:
        """Queue what the next round tries, leaving out rounds in which there is nothing new."""
        while self._rounds:
            others = self._new_in(self._rounds[0])
            if others:
                known = [] if self._best in self._shortest else [self._best]
                self._queue.extend([*known, *others] * _EACH)
                return
            self._rounds.popleft()

    def _new_in(self, tried: Round) -> list[Way]:
        return [way for way in dict.fromkeys(tried.others(self._best)) if way != self._best]

    def _time_of(self, way: Way) -> float:
        return self._shortest.get(way, float("inf"))


def trials_of(
    elements: int,
    world_size: int,
    *,
    shard_bytes: int,
    aggregators: int | None,
    tries: bool,
    wire_dtype: str = "fp32",
) -> PlanTrials:
    """Return what ways to take for a gradient of float32: the one that is asked for, first.

    ``tries`` says whether other plans and concurrencies may be tried; a ``wire_dtype`` of "auto",
    whether bf16 may.
    """
    rounds_nothing = wire_dtype == AUTO or world_size == 1
    dtype = LOSSLESS if rounds_nothing else check_dtype(wire_dtype)

    def plan(shard_bytes: int, aggregators: int | None) -> ShardPlan:
        return plan_shards(
            elements, world_size=world_size, shard_bytes=shard_bytes, aggregators=aggregators
        )

    def other_plans(usual: Way) -> list[Way]:
        plans = [plan(other, None) for other in _OTHER_BYTES]
        if 4 * elements <= _ONE_OWNER_BYTES:
            plans.append(plan(shard_bytes, 1))
        return [replace(usual, plan=other) for other in plans]

    rounds: list[Round] = []
    if tries and dtype == LOSSLESS:
        rounds.append(Round(other_plans))
    if tries:
        rounds.append(Round(_other_transfers))
    if wire_dtype == AUTO:
        rounds.append(Round(lambda best: [replace(best, dtype="bf16")], _MUCH_BETTER))
    usual = Way(plan(shard_bytes, aggregators), dtype=dtype)
    return PlanTrials(usual, rounds if world_size > 1 else ())


def _other_transfers(best: Way) -> list[Way]:
    """Other concurrencies, where there are frames enough for them to differ."""
    shards = best.plan.shards
    return [replace(best, transfers=n) for n in _OTHER_TRANSFERS if shards > min(n, best.transfers)]
