"""One generation seen from the client: start its ranks, fix the roster, follow it to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgpack

from smlt.control.functions import Function
from smlt.control.generation_view import GenerationView
from smlt.control.invocation_log import InvocationLog
from smlt.control.invocations import Invocation, Invocations
from smlt.control.lambda_client import LambdaService
from smlt.control.progress_feed import ProgressFeed
from smlt.control.roll_call import RollCall
from smlt.errors import SmltError, StoreError, StoreUnreachableError
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import ControlStore, Notice
from smlt.messages.job import Limits
from smlt.messages.worker import Failure, RankState, StepFlag, WorkerTask

_READ_S = 0.5
_LOGS_S = 0.5
_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a generation ended."""

    failure: Failure | None
    reasons: StepFlag
    """Why the ranks agreed to stop; empty when they did not."""


class Supervisor:
    """Supervises one generation, from its marker to the leaving of its last rank."""

    def __init__(
        self,
        first: WorkerTask,
        world_size: int,
        *,
        store: ControlStore,
        cloud: LambdaService,
        function: Function,
        invocations: Invocations,
        feed: ProgressFeed,
        limits: Limits,
        exact: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._world_size = world_size
        self._keys = GenerationKeys(first.job_id, first.generation)
        self._store = store
        self._invocations = invocations
        self._feed = feed
        self._limits = limits
        self._exact = exact
        self._clock = clock
        self._view = GenerationView(clock)
        self._roll_call = RollCall(
            first,
            world_size,
            self._view,
            cloud=cloud,
            function=function,
            invocations=invocations,
            feed=feed,
            limits=limits,
            clock=clock,
        )
        self._log = InvocationLog(
            function.name,
            first.generation,
            self._view,
            cloud=cloud,
            invocations=invocations,
            clock=clock,
        )
        self._after = {self._keys.control: "0-0", self._keys.reports: "0-0"}
        self._roster_fixed = 0.0
        self._marked = False
        self._wanted = StepFlag(0)

    @property
    def world_size(self) -> int:
        """How many ranks take part."""
        return len(self._view.ranks)

    async def run(self) -> Ended:
        """Start the generation and follow it to its end."""
        try:
            await self._store.mark(self._keys.marker, ttl_s=self._ttl_s)
            self._marked = True
            if self._wanted:
                await self._announce_stop()
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(task)
                    for task in (self._read(), self._pulse(), self._follow_logs())
                ]
                await self._start()
                await self._until_over()
                for task in beside:
                    task.cancel()
        except ExceptionGroup as errors:
            return await self._broken(_first(errors))
        except StoreError as error:
            # Nothing runs yet. A store that is silent has had its time to come back, but one that
            # is full, or answers nonsense, has been asked only once.
            kind = "unreachable" if isinstance(error, StoreUnreachableError) else "store"
            return Ended(Failure(kind=kind, message=str(error)), StepFlag(0))
        await self._log.settle(_SETTLE_S)
        self._show()
        failure, reasons = self._view.failure, self._view.reasons
        if failure is None and not reasons:
            # It must not look like an end, nor be tried again for ever.
            failure = Failure(kind="internal", message="all ranks have left, and none said why")
        return Ended(failure, reasons)

    async def conclude(self, failure: Failure) -> None:
        """End a generation that another client began: tell its ranks, and wait until they left.

        A store that is gone, or another one, can tell nobody: the ranks notice by themselves.
        """
        with contextlib.suppress(StoreError):
            [packed] = await self._store.values([self._keys.roster])
            if packed is not None:
                self._view.fix(msgpack.unpackb(packed)["ranks"])
            await self.abort(failure)
            reading = asyncio.create_task(self._read())
            try:
                while not self._view.is_over and not reading.done() and not self._is_overdue():
                    await self._look_at_leases()
                    await self._view.news_within(_READ_S)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def stop(self, reason: StepFlag) -> None:
        """Ask all ranks to leave after their current step; before the start, after their first."""
        self._wanted |= reason
        if self._marked:
            await self._announce_stop()

    async def replace(self, ranks: Iterable[int]) -> None:
        """Have all ranks leave, and end the environments of these: they are not to serve again."""
        for rank in ranks:
            fields = {"event": b"retire", "rank": b"%d" % rank}
            await self._store.announce(self._keys.control, fields, guard=self._keys.marker)
        await self.stop(StepFlag.STRAGGLER)

    async def _announce_stop(self) -> None:
        fields = {"event": b"stop", "reason": b"%d" % self._wanted}
        await self._store.announce(self._keys.control, fields, guard=self._keys.marker)

    async def abort(self, failure: Failure) -> None:
        """End the generation now; an earlier abort stands."""
        packed = bytes(msgpack.packb(failure.to_dict()))
        stands = await self._store.first(
            self._keys.abort,
            packed,
            guard=self._keys.marker,
            ttl_s=self._ttl_s,
            stream=self._keys.control,
            fields={"event": b"abort", "failure": packed},
        )
        self._view.abort(Failure.from_dict(msgpack.unpackb(stands)))

    @property
    def _first_lease_due(self) -> float:
        """A rank that has claimed may need a moment to its first heartbeat."""
        return self._roster_fixed + self._limits.lease_s

    @property
    def _ttl_s(self) -> float:
        return self._limits.function_s + self._limits.start_s + self._limits.save_s

    async def _broken(self, error: BaseException) -> Ended:
        """End what can no longer be followed; the ranks notice by themselves, and save."""
        if not isinstance(error, SmltError):
            raise error
        kind = "store" if isinstance(error, StoreError) else "cloud"
        if kind == "store":
            await self._log.settle(self._limits.store_s + self._limits.save_s)
        return Ended(Failure(kind=kind, message=str(error)), StepFlag(0))

    async def _start(self) -> None:
        """Invoke all ranks, wait for their claims, and fix the roster once."""
        await self._store.renew(self._keys.client, b"", ttl_s=self._limits.client_lease_s)
        failure = await self._roll_call.hold()
        if failure is not None:
            await self.abort(failure)
        if self._view.failure:
            return
        claimed = sorted(self._view.claims)
        if 2 * len(claimed) < self._world_size:
            await self.abort(
                Failure(
                    kind="start",
                    message=f"only {len(claimed)} of {self._world_size} workers started within "
                    f"{self._limits.start_s:g} s",
                )
            )
            return
        if self._exact:
            claimed = claimed[: power_of_two(len(claimed))]
        self._view.fix(claimed)
        self._roster_fixed = self._clock()
        await self._store.first(
            self._keys.roster,
            bytes(msgpack.packb({"ranks": claimed})),
            guard=self._keys.marker,
            ttl_s=self._ttl_s,
            stream=self._keys.control,
            fields={"event": b"roster"},
        )
        self._feed.event("roster", generation=self._first.generation, ranks=claimed)

    async def _until_over(self) -> None:
        """Wait until every rank has left or is lost, or the limit for saving has passed."""
        while not self._view.is_over and not self._is_overdue():
            await self._view.news_within(_READ_S)

    def _is_overdue(self) -> bool:
        """Whether the ranks have had their time to leave."""
        since, failure, limits = self._view.ending_since, self._view.failure, self._limits
        if failure is not None and failure.kind == "stop":
            limit_s = limits.stop_s
        else:
            limit_s = limits.save_s + (limits.ending_s if self._view.is_saving else 0.0)
        return since is not None and self._clock() > since + limit_s

    async def _read(self) -> None:
        while True:
            for notice in await self._store.read(self._after, wait_s=_READ_S):
                self._after[notice.stream] = notice.id
                self._take(notice)
            self._view.notify()

    def _take(self, notice: Notice) -> None:
        if notice.stream == self._keys.reports:
            self._feed.take(notice.fields)
        else:
            self._view.take(notice.fields)

    async def _pulse(self) -> None:
        """Renew the client's lease, look at the ranks' leases, and bring progress up to date."""
        while True:
            await self._store.renew(self._keys.client, b"", ttl_s=self._limits.client_lease_s)
            await self._store.check(self._keys.marker)
            await self._look_at_leases()
            self._show()
            await asyncio.sleep(min(self._limits.heartbeat_s, self._limits.client_lease_s / 4))

    def _show(self) -> None:
        self._feed.pulse(self._view.states, self._invocations.bill())

    async def _look_at_leases(self) -> None:
        ranks = list(self._view.ranks.items())
        values = await self._store.values([self._keys.lease(number) for number, _ in ranks])
        for (number, rank), value in zip(ranks, values, strict=True):
            if rank.left:
                continue
            if value is not None:
                rank.state = RankState.from_dict(msgpack.unpackb(value))
            elif not rank.gone and (rank.state or self._clock() > self._first_lease_due):
                limit = f"{self._limits.lease_s:g} s"
                await self._lose(number, f"rank {number} has not been heard of for {limit}")

    async def _lose(self, number: int, why: str, kind: str = "lost") -> None:
        self._view.lose(number)
        if self._view.ending_since is None:
            await self.abort(Failure(kind=kind, message=why, rank=number))

    async def _follow_logs(self) -> None:
        """Read the function's log; an invocation that is over without having left was killed."""
        while True:
            await self._log.read()
            for invocation in self._log.ended():
                await self._look_at_end(invocation)
            await asyncio.sleep(_LOGS_S)

    async def _look_at_end(self, invocation: Invocation) -> None:
        # A second delivery of one event ends well, and at once: that tells nothing.
        if not invocation.error_type:
            return
        number, kind = invocation.rank, "memory" if invocation.out_of_memory else "lost"
        rank = self._view.ranks.get(number)
        if not self._view.is_rank(invocation):
            if number not in self._view.claims and not self._view.ranks:
                self._roll_call.died(invocation)
        elif not self._view.ranks:
            await self.abort(Failure(kind=kind, message=invocation.obituary, rank=number))
        elif rank is not None and not rank.gone:
            # Its notice of leaving may still be on the way: one more look before it is given up.
            if rank.suspected:
                await self._lose(number, invocation.obituary, kind)
            rank.suspected = True


def power_of_two(workers: int) -> int:
    """Return the largest power of two of workers there is: ``exact`` takes no other number."""
    return 1 << (workers.bit_length() - 1)


def _first(error: BaseException) -> BaseException:
    """The first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
