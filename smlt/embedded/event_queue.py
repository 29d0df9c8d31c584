"""Asynchronous invocations: accepted at once, delivered when there is room, and retried."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Self

from smlt.embedded.fleet import Fleet
from smlt.embedded.functions import FunctionVersion
from smlt.embedded.hostile import Fate, Hostility
from smlt.embedded.limits import Limits
from smlt.embedded.runtime_api import Invocation

logger = logging.getLogger(__name__)

DEFAULT_RETRIES = 2
# Kills come at least so far apart: a job that is hit at every start gets nowhere.
KILL_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class EventSettings:
    """How a function's events are treated: retries after an error, and the age they may reach."""

    retries: int
    age_s: float

    @classmethod
    def of(cls, configured: Mapping[str, Any] | None, limits: Limits) -> Self:
        """From a PutFunctionEventInvokeConfig request; what it leaves open is Lambda's default."""
        configured = configured or {}
        retries = configured.get("MaximumRetryAttempts")
        age_s = configured.get("MaximumEventAgeInSeconds")
        return cls(
            DEFAULT_RETRIES if retries is None else int(retries),
            limits.event_age_s if age_s is None else float(age_s),
        )


class EventQueue:
    """Delivers each accepted event in a task of its own; throttled ones wait for a free place."""

    def __init__(self, fleet: Fleet, limits: Limits, hostility: Hostility | None = None) -> None:
        self._fleet = fleet
        self._limits = limits
        self._hostility = hostility
        self._last_kill = -KILL_PAUSE_S
        self._deliveries: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._deliveries)

    def put(
        self, function: FunctionVersion, invocation: Invocation, settings: EventSettings
    ) -> None:
        """Accept an event; returns at once."""
        fate = Fate() if self._hostility is None else self._hostility.fate()
        for delay_s in fate.deliveries:
            self._begin(self._deliver(function, invocation, settings, delay_s))
        if fate.kill_idle and self._fleet.kill_idle(function.name):
            logger.info("chaos: an idle environment of %s was killed", function.name)
        if fate.kill_after_s is not None and fate.deliveries:
            moment_s = fate.deliveries[0] + fate.kill_after_s
            self._begin(self._kill(invocation.request_id, moment_s))
        if self._hostility is not None:
            logger.info("chaos: event %s: %s", invocation.request_id, fate)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._deliveries.add(task)
        task.add_done_callback(self._delivered)

    async def _kill(self, request_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        now = time.monotonic()
        if now - self._last_kill > KILL_PAUSE_S and self._fleet.kill_busy(request_id):
            self._last_kill = now
            logger.info("chaos: the environment of event %s was killed", request_id)

    async def _deliver(
        self,
        function: FunctionVersion,
        invocation: Invocation,
        settings: EventSettings,
        delay_s: float,
    ) -> None:
        deadline = time.monotonic() + settings.age_s
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        request_id = invocation.request_id
        for attempt in range(settings.retries + 1):
            if attempt > 0:
                await asyncio.sleep(self._delay_s(attempt))
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await self._fleet.wait_for_slot(function.name, left_s):
                logger.warning("event %s for %s grew too old", request_id, function.name)
                return
            outcome = await self._fleet.run(function, invocation)
            if outcome.error is None:
                return
            logger.info(
                "event %s for %s failed in attempt %d", request_id, function.name, attempt + 1
            )
        logger.warning("event %s for %s is given up", request_id, function.name)

    def _delay_s(self, attempt: int) -> float:
        delays = self._limits.retry_delays_s
        return delays[min(attempt, len(delays)) - 1]

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an event could not be delivered", exc_info=task.exception())
