"""A job steered by its resource manager: what that is told and asked, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from smlt.control.functions import Functions
from smlt.control.goals import Standing
from smlt.control.invocations import Invocations
from smlt.control.progress_feed import ProgressFeed
from smlt.errors import CloudError
from smlt.messages.job import ResourcePlan

if TYPE_CHECKING:  # SciPy is behind it, for which a job without a goal need not wait
    from smlt.control.resource_manager import Decision, ResourceManager

# So often the resource manager is asked.
_ASK_S = 0.1


class Steering:
    """Asks the resource manager again and again, and does what it says."""

    def __init__(
        self,
        manager: ResourceManager,
        feed: ProgressFeed,
        invocations: Invocations,
        functions: Functions,
        *,
        go_over: Callable[[ResourcePlan], Awaitable[None]],
        end: Callable[[Decision], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """Steer by two handles: ``go_over`` to a plan, and ``end`` the generation for good."""
        self._manager = manager
        self._feed = feed
        self._invocations = invocations
        self._functions = functions
        self._go_over = go_over
        self._end = end
        self._clock = clock
        self._going_over: asyncio.Task[None] | None = None
        self.run_out = ""
        """Why the job ends before it is done: its budget or its deadline, in words."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Steer until cancelled."""
        manager = self._manager
        self._feed.on_step = lambda record: manager.step(record, self._clock())
        self._feed.on_work = manager.work
        self._feed.on_evaluation = manager.evaluation
        try:
            while True:
                await asyncio.sleep(_ASK_S)
                if self._going_over is not None and self._going_over.done():
                    self._going_over.result()
                if not stopping.is_set() and not self.run_out:
                    decision = manager.decide(self._standing(), self._clock())
                    if decision is not None:
                        await self._carry_out(decision)
        finally:
            if self._going_over is not None:
                self._going_over.cancel()
                await asyncio.gather(self._going_over, return_exceptions=True)

    def begin(self, plan: ResourcePlan) -> None:
        """A generation is drawn with this plan."""
        self._manager.begin(plan, self._clock())

    def rest(self) -> None:
        """The generation has ended."""
        self._manager.end(self._clock())

    def failed(self, kind: str) -> ResourcePlan | None:
        """Return the plan to go on with, where the one that has just failed may be at fault."""
        return self._manager.failed(kind) if kind in ("memory", "start") else None

    def _standing(self) -> Standing:
        progress = self._feed.progress
        return Standing(
            elapsed_s=self._feed.elapsed_s,
            spent_usd=self._feed.spent_usd(self._invocations.bill()[1]),
            step=progress.step,
            total_steps=progress.total_steps,
        )

    async def _carry_out(self, decision: Decision) -> None:
        plan = decision.plan
        self._feed.progress.plan = decision.reason
        self._feed.event(
            "plan",
            reason=decision.reason,
            saving=decision.saving,
            **(plan.to_dict() if plan else {"workers": None, "memory_mb": None}),
        )
        if plan is not None and not decision.stays:
            self._going_over = asyncio.create_task(self._when_it_is_there(plan))
        if decision.stop is not None:
            self.run_out = decision.reason
            await self._end(decision)

    async def _when_it_is_there(self, plan: ResourcePlan) -> None:
        """Go over to a plan when its function is made: in a private network that takes a minute.

        Until then the workers go on.
        """
        with contextlib.suppress(CloudError):  # it is tried again when the generation has ended
            await self._functions.of(plan.memory_mb)
        await self._go_over(plan)
