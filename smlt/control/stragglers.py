"""Find the ranks for which all others wait, and tell whether a new environment for them pays.

A step is as fast as its slowest rank. A rank is busy with a step for as long as it computes, or its
link is in use for its own shards and means; the rest it waits for others. One that is busy for much
longer than the median of the others, in step after step, sits on a poor machine or has got a larger
share of the work. The first is mended by another environment, the second is not: so each rank gets
a new one once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median

MULTIPLE = 1.5
"""A rank is slow in a step that keeps it busy for more than so many times the others' median."""
STEPS = 8
"""It is a straggler when it was slow in so many steps one after the other."""
# Less is noise, whatever the multiple.
_EXCESS_S = 0.02
# A new environment is to bring so many times what it costs.
_MARGIN = 2.0
# Until a start has been timed: a cold one that loads torch.
_START_S = 10.0
_LEAST_S = 1e-6
# Steps that not all ranks have told of.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that the others wait for."""

    rank: int
    times: float
    """So many times as long as the median of the others it is busy."""
    seconds: float
    """For so long it is busy in a step."""

    def __str__(self) -> str:
        usual = self.seconds / self.times
        return f"rank {self.rank} takes {self.times:.1f} × the others' {usual:.2g} s a step"


class Stragglers:
    """Watches the ranks of one generation after the other."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy: dict[int, dict[int, float]] = {}
        """By step and rank, in seconds; of steps that not all have told of."""
        self._slow: dict[int, deque[Straggler]] = defaultdict(lambda: deque(maxlen=STEPS))
        """By rank: its latest steps, one after the other, in which it was slow."""
        self._fair: deque[float] = deque(maxlen=STEPS)
        """How long the slowest of all others was busy in the latest steps."""
        self._replaced: set[int] = set()
        self._drawn: float | None = None
        self._start_s = 0.0

    def begin(self) -> None:
        """Forget the last generation: ranks may be other environments in this one."""
        self._busy.clear()
        self._slow.clear()
        self._fair.clear()
        self._drawn = self._clock()

    def take(self, rank: int, step: int, busy_s: float, world_size: int) -> None:
        """Take in how long one of so many ranks was busy with a step."""
        if self._drawn is not None:
            # What all of a start takes, cold or warm; the first of a job is cold.
            self._start_s = max(self._start_s, self._clock() - self._drawn)
            self._drawn = None
        told = self._busy.setdefault(step, {})
        told[rank] = busy_s
        if len(told) == world_size:
            self._compare(self._busy.pop(step))
        elif len(self._busy) > _KEPT:
            del self._busy[next(iter(self._busy))]

    def found(self) -> list[Straggler]:
        """Return the stragglers, by the mean of their latest steps."""
        return [_mean(slow) for _, slow in sorted(self._slow.items()) if len(slow) == STEPS]

    def worth_replacing(self, steps_left: int) -> list[Straggler]:
        """Return those whose replacement is expected to pay in the steps that are left."""
        found = self.found()
        wanted = [straggler for straggler in found if straggler.rank not in self._replaced]
        if not wanted:
            return []
        kept = [straggler.seconds for straggler in found if straggler.rank in self._replaced]
        slowest_then = max(fmean(self._fair), *kept, 0.0)
        gain_s = max(straggler.seconds for straggler in wanted) - slowest_then
        pays = gain_s * steps_left > _MARGIN * (self._start_s or _START_S)
        return wanted if pays else []

    def replaced(self, ranks: Iterable[int]) -> None:
        """Note that these ranks get new environments; none gets a second one."""
        self._replaced.update(ranks)

    def _compare(self, busy: dict[int, float]) -> None:
        if len(busy) < 2:
            return
        # The median of all but the slowest: of two ranks, that of the other.
        usual = max(median(sorted(busy.values())[:-1]), _LEAST_S)
        limit = max(MULTIPLE * usual, usual + _EXCESS_S)
        for rank, seconds in busy.items():
            if seconds > limit:
                self._slow[rank].append(Straggler(rank, seconds / usual, seconds))
            else:
                self._slow.pop(rank, None)
        self._fair.append(max(seconds for seconds in busy.values() if seconds <= limit))


def _mean(slow: Iterable[Straggler]) -> Straggler:
    found = list(slow)
    return Straggler(
        found[0].rank, fmean(one.times for one in found), fmean(one.seconds for one in found)
    )
