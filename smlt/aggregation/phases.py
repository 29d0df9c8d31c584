"""Where the time of a step goes, in the paper's words.

UL-shard puts a rank's shards, DL-shard fetches those of others to its own, UL-aggr puts means and
DL-grad fetches them. All of these overlap here, with one another and with the computation, so
each is the time in which it goes on at all; their sum may be longer than the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

UL_SHARD, DL_SHARD, UL_AGGR, DL_GRAD = "UL-shard", "DL-shard", "UL-aggr", "DL-grad"
COMPUTE, REDUCE, APPLY = "compute", "reduce", "apply"
WAIT = "wait"
"""Nothing at all goes on at this rank."""
OVERLAP = "overlap"
"""Shards are moving while gradients are computed."""

_TRANSFERS = (UL_SHARD, DL_SHARD, UL_AGGR, DL_GRAD)

Span = tuple[str, int, int, float, float]
"""Phase, shard, the other rank (-1: none), begin and end in seconds after the step's begin."""


class Phases:
    """The clock of one step at one rank, started when it is made.

    With ``trace`` it also keeps every single span, which says which shard went when.
    """

    def __init__(self, clock: Callable[[], float], *, trace: bool = False) -> None:
        self.seconds = dict.fromkeys((COMPUTE, *_TRANSFERS, REDUCE, APPLY, WAIT, OVERLAP), 0.0)
        self.spans: list[Span] = []
        self._clock = clock
        self._trace = trace
        self._running: Counter[str] = Counter()
        self._began = self._charged = clock()

    @contextmanager
    def during(self, phase: str, shard: int = -1, rank: int = -1) -> Iterator[None]:
        began = self._charge()
        self._running[phase] += 1
        try:
            yield
        finally:
            ended = self._charge()
            self._running[phase] -= 1
            if self._trace:
                span = (phase, shard, rank, began - self._began, ended - self._began)
                self.spans.append(span)

    def stop(self) -> float:
        """Count the time up to now, and return how long the step has taken."""
        return self._charge() - self._began

    def _charge(self) -> float:
        """Charge the time since the last change to all that went on meanwhile."""
        now = self._clock()
        seconds = now - self._charged
        self._charged = now
        going_on = [phase for phase, count in self._running.items() if count]
        for phase in going_on or [WAIT]:
            self.seconds[phase] += seconds
        if self._running[COMPUTE] and any(self._running[phase] for phase in _TRANSFERS):
            self.seconds[OVERLAP] += seconds
        return now
