"""Averages side by side: each in a lane, a chain of steps with streams of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.collective import Collective
from smlt.aggregation.notices import Notices
from smlt.aggregation.plan_trials import PlanTrials
from smlt.aggregation.shard_plan import ShardPlan
from smlt.aggregation.step import AllReduce, StepResult
from smlt.aggregation.transfer import Membership
from smlt.aggregation.wire import Wire
from smlt.errors import FrameError, SmltError, UserError
from smlt.io.frame import Meta

Flat = NDArray[np.float32]


class Readiness:
    """Which shards of a buffer are final. ``announce`` on the event loop's thread."""

    def __init__(self) -> None:
        self._ready: set[int] = set()
        self._step: AllReduce | None = None

    @classmethod
    def of_all(cls, plan: ShardPlan) -> Self:
        """Return that of a buffer that is final already."""
        readiness = cls()
        readiness._ready.update(range(plan.shards))
        return readiness

    def announce(self, shard: int) -> None:
        self._ready.add(shard)
        if self._step is not None:
            self._step.ready(shard)

    def attach(self, step: AllReduce) -> None:
        self._step = step
        for shard in self._ready:
            step.ready(shard)


class Turn:
    """An operation's place in its lane: after the one before."""

    def __init__(self, before: asyncio.Event) -> None:
        self.before = before
        self.done = asyncio.Event()


class Lane:
    """Reductions one after the other, in the order in which they were numbered."""

    def __init__(self, members: Membership) -> None:
        self.notices = Notices(members.store, members.keys, members.rank, lambda _: None)
        self.collective = Collective(members, self.notices)
        self._turns: deque[Turn] = deque()

    def next_turn(self) -> Turn:
        while self._turns and self._turns[0].done.is_set():
            self._turns.popleft()
        if self._turns:
            turn = Turn(self._turns[-1].done)
        else:
            turn = Turn(asyncio.Event())
            turn.before.set()
        self._turns.append(turn)
        return turn

    def fail(self, error: SmltError) -> None:
        self.notices.fail(error)
        for turn in self._turns:
            turn.done.set()  # those behind it find out why

    async def reduce(
        self,
        turn: Turn,
        step: int,
        trials: PlanTrials,
        flat: Flat,
        *,
        weight: float,
        what: str,
        readiness: Readiness | None,
        wire: Wire | None,
        check: Callable[[], None],
    ) -> None:
        """Replace ``flat`` by the weighted mean over ranks, once it is the turn's.

        Without ``readiness`` all of it is ready. ``check`` raises what has ended the session
        meanwhile.

        Raises:
            UserError: other ranks do something else, by what they say of it.
        """
        await turn.before.wait()
        try:
            check()
            # Metrics add up over ranks: if all said the same, there is one, with a count of all.
            said = Meta(metrics={what: (1.0, 1.0), **trials.told()})
            way = trials.way
            reduction = self.collective.begin(
                step,
                way.plan,
                flat,
                weight=weight,
                flags=0,
                meta=lambda shard: Meta() if shard else said,
                wire=wire,
                transfers=way.transfers,
            )
            (readiness or Readiness.of_all(way.plan)).attach(reduction)
            result = await _explained(reduction.run(), what)
            trials.learn(result.metas[0].metrics)
            trials.took(way, reduction.phases.stop())
        finally:
            turn.done.set()
        _check_alike(result, what)


def _check_alike(result: StepResult, what: str) -> None:
    """Raise unless all ranks have said the same of what they do."""
    told = sorted(result.metas[0].metrics)
    if told != [what]:
        raise UserError(
            f"ranks do different things at the same time ({' and '.join(told)}): all have to"
            " call the same operations, with the same sizes, in the same order"
        )


async def _explained(run: Awaitable[StepResult], what: str) -> StepResult:
    """Say of a frame that cannot be used that it may be another operation's."""
    try:
        return await run
    except FrameError as error:
        raise FrameError(
            f"{error}; this rank was at {what}, and others must be at the same, with the same sizes"
        ) from error
