"""Bring the ranks of a generation to their claims: send for each, and again for whoever is missing.

Lambda may deliver an event late, twice or never, refuse it, or take the environment away before
the worker has said a word. So whoever does not come is sent for again, after growing delays; of two
that come, the second finds the rank claimed, and ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable

from smlt.control.functions import Function
from smlt.control.generation_view import GenerationView
from smlt.control.invocations import Invocation, Invocations
from smlt.control.lambda_client import LambdaService
from smlt.control.progress_feed import ProgressFeed
from smlt.errors import CloudError
from smlt.messages.job import Limits
from smlt.messages.worker import Failure, WorkerTask

_INVOKES = 32
_BACKOFF_S = 0.2
_BACKOFF_LIMIT_S = 5.0
# Of the limit for starting: an event that does not run by then may be lost.
_PATIENCE = 1 / 6
# So many invocations of one rank that die before they claim it end the generation.
_DEATHS = 3


class RollCall:
    """Calls the ranks of one generation, from the first event to the last claim."""

    def __init__(
        self,
        first: WorkerTask,
        world_size: int,
        view: GenerationView,
        *,
        cloud: LambdaService,
        function: Function,
        invocations: Invocations,
        feed: ProgressFeed,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._first = first
        self._world_size = world_size
        self._view = view
        self._cloud = cloud
        self._function = function
        self._invocations = invocations
        self._feed = feed
        self._clock = clock
        self._limit_s = limits.start_s
        self._give_up = self._next = 0.0
        self._due: dict[int, float] = {}
        """By rank: when to send for it, or to see whether it has come."""
        self._calls: Counter[int] = Counter()
        self._refusals: dict[int, list[str]] = defaultdict(list)
        self._dead: dict[int, set[tuple[str, str]]] = defaultdict(set)
        self._failure: Failure | None = None
        self._gate = asyncio.Semaphore(_INVOKES)

    async def hold(self) -> Failure | None:
        """Call until all ranks have claimed, it is aborted, or the limit for starting has passed.

        Returns:
            Why the generation cannot start, if that is known.
        """
        self._next = self._clock()
        self._give_up = self._next + self._limit_s
        self._due = dict.fromkeys(range(self._world_size), self._next)
        while not self._is_over(now := self._clock()):
            if now >= self._next:
                await self._call_who_is_due(now)
            await self._view.news_within(min(self._next, self._give_up) - self._clock())
        return self._failure or self._still_refused()

    def died(self, invocation: Invocation) -> None:
        """Take in, once or more often, that one ended before anybody had claimed its rank."""
        rank, obituary = invocation.rank, invocation.obituary
        delivery = invocation.request_id, invocation.stream
        if delivery in self._dead[rank]:
            return
        self._dead[rank].add(delivery)
        deaths = len(self._dead[rank])
        if invocation.out_of_memory:
            self._failure = Failure(kind="memory", message=obituary, rank=rank)
        elif deaths == _DEATHS:
            self._failure = Failure(kind="start", message=obituary, rank=rank)
        else:
            self._due[rank] = self._clock() + _BACKOFF_S * 2**deaths
            self._next = min(self._next, self._due[rank])
        self._view.notify()

    def _still_refused(self) -> Failure | None:
        """Say why, if there are ranks that Lambda has taken no event for to the last."""
        for rank in self._missing:
            if self._refusals[rank] and self._view.failure is None:
                return Failure(kind="start", message=self._refusals[rank][-1], rank=rank)
        return None

    def _is_over(self, now: float) -> bool:
        have_come = len(self._view.claims) >= self._world_size
        failed = self._view.failure is not None or self._failure is not None
        return have_come or failed or now >= self._give_up

    @property
    def _missing(self) -> list[int]:
        return sorted(self._due.keys() - self._view.claims.keys())

    async def _call_who_is_due(self, now: float) -> None:
        """Call whoever is due, but for those whose events run: they may take their time."""
        sent = self._invocations.of(self._first.generation)
        running = {i.rank for i in sent if i.started and not i.ended}
        async with asyncio.TaskGroup() as group:
            for rank in self._missing:
                if self._due[rank] <= now:
                    self._due[rank] = now + _PATIENCE * self._limit_s * 2 ** self._calls[rank]
                    if rank not in running:
                        group.create_task(self._call(rank))
        self._next = min((self._due[rank] for rank in self._missing), default=self._give_up)

    async def _call(self, rank: int) -> None:
        function, generation = self._function, self._first.generation
        payload = {**self._first.to_dict(), "rank": rank}
        async with self._gate:
            try:
                request_id = await self._cloud.invoke(function.name, function.version, payload)
            except CloudError as error:
                # Throttled, or the service has a moment.
                delay = _BACKOFF_S * 2.0 ** len(self._refusals[rank])
                self._due[rank] = self._clock() + min(delay, _BACKOFF_LIMIT_S)
                self._refusals[rank].append(str(error))
                self._feed.notice(str(error))
                return
        self._refusals.pop(rank, None)
        self._invocations.sent(request_id, generation, rank, function.memory_mb, function.name)
        self._calls[rank] += 1
        if self._calls[rank] > 1:
            # Not worth a word to the user: it costs nothing but the time that it takes.
            calls = self._calls[rank]
            self._feed.event("called again", generation=generation, rank=rank, calls=calls)
