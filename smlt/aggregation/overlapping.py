"""Reductions that overlap as their caller likes, and yet find out how their shards do best.

Under ``DistributedDataParallel`` buckets of the same few sizes come in every step, each begun
while those before it are still on their way. What the way of one depends on must be known, and
equal, on all ranks when it begins: so those of a size on trial go alone, one after the other,
until that is settled. What has come but once is no pattern, and tries nothing.
"""

from __future__ import annotations

import asyncio
import logging

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.group import Group, Operation
from smlt.aggregation.plan_trials import PlanTrials
from smlt.aggregation.wire import Wire

logger = logging.getLogger(__name__)

# Whoever has more sizes than this has no pattern.
_MOST_SIZES = 100


class OverlappingReductions:
    """The sums and averages of float32 in a group; its methods number an operation, as a group's.

    None of them begins before it is known whether the one before it is on trial.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._seen: set[str] = set()
        self._trials: dict[str, PlanTrials] = {}
        self._known = asyncio.Event()
        """Set when the way of what comes after the last operation is known."""
        self._known.set()

    def reduce(
        self, flat: NDArray[np.float32], *, weight: float, what: str, wire: Wire
    ) -> Operation:
        """Do what ``Group.reduce_flat`` does; ``what`` also says which reductions are alike."""
        trials = self._of(what, flat.size)
        reduction = self._group.reduce_flat(
            flat, weight=weight, what=what, wire=wire, trials=trials
        )
        before, self._known = self._known, asyncio.Event()
        known = self._known

        async def in_turn() -> None:
            try:
                await before.wait()
                was_over = trials.is_over
                if was_over:
                    known.set()
                await reduction()
                if trials.is_over and not was_over:
                    logger.info("job %s: %s: %s", self._group.session.job, what, trials)
            finally:
                known.set()

        return in_turn

    @property
    def shards(self) -> dict[str, str]:
        """How what has come several times travels, in words, where that is settled."""
        return {what: str(trials) for what, trials in self._trials.items() if trials.is_over}

    def _of(self, what: str, elements: int) -> PlanTrials:
        """Return the trials of all that is alike, from the second one on."""
        if what not in self._seen:
            if len(self._seen) < _MOST_SIZES:
                self._seen.add(what)
            return self._group.trials(elements)
        if what not in self._trials:
            self._trials[what] = self._group.trials(elements, tries=True)
        return self._trials[what]
