"""Tell the user of slow ranks while a job runs, and have them replaced when that pays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from smlt.control.progress_feed import ProgressFeed
from smlt.control.stragglers import Straggler, Stragglers
from smlt.messages.worker import PhaseRecord

_LOOK_S = 1.0


class StragglerWatch:
    """Stands between what the ranks report and the scheduler. ``run`` it beside the job."""

    def __init__(
        self,
        feed: ProgressFeed,
        replace: Callable[[list[int]], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._feed = feed
        self._replace = replace
        self._stragglers = Stragglers(clock)
        self._named: set[int] = set()
        self._world_size: Callable[[], int] = int
        feed.on_phases = self._take

    def begin(self, world_size: Callable[[], int]) -> None:
        """Begin with a generation; how many ranks it has is known when they have come."""
        self._stragglers.begin()
        self._named.clear()
        self._world_size = world_size

    async def run(self) -> None:
        """Look for stragglers until cancelled."""
        progress = self._feed.progress
        while True:
            await asyncio.sleep(_LOOK_S)
            found = self._stragglers.found()
            progress.slow = "; ".join(map(str, found))
            for straggler in found:
                self._name(straggler)
            left = (progress.total_steps or 2 * progress.step) - progress.step
            ranks = [straggler.rank for straggler in self._stragglers.worth_replacing(left)]
            if ranks:
                self._stragglers.replaced(ranks)
                await self._replace(ranks)

    def _name(self, straggler: Straggler) -> None:
        """Tell the user of a rank once in a generation."""
        if straggler.rank not in self._named:
            self._named.add(straggler.rank)
            self._feed.notice(f"{straggler}, and the others wait for it")
            self._feed.event("straggler", **asdict(straggler))

    def _take(self, rank: int, record: PhaseRecord) -> None:
        self._stragglers.take(rank, record.step, record.busy_s, self._world_size())
