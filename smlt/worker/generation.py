"""A rank's life in one generation: claim, roster, lease, stop flags, abort.

A generation is an immutable view. Whatever goes wrong ends it; nothing is repaired inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgpack

from smlt.aggregation.notices import Notices
from smlt.errors import (
    AbortedError,
    SmltError,
    StoreError,
    StoreLostError,
    StoreUnreachableError,
)
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import ParameterStore
from smlt.messages.job import Limits
from smlt.messages.worker import Failure, RankState, StepFlag, WorkerReport, WorkerTask

_POLL_S = 1.0


class HandoverError(SmltError):
    """A rank's function is nearly over while it waits for another rank."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The ranks that a generation has, fixed once."""

    ranks: tuple[int, ...]

    @property
    def world_size(self) -> int:
        return len(self.ranks)

    def pack(self) -> bytes:
        return bytes(msgpack.packb({"ranks": list(self.ranks)}))

    @classmethod
    def unpack(cls, data: bytes) -> Roster:
        return cls(tuple(msgpack.unpackb(data)["ranks"]))


class Generation:
    """One rank's membership. ``join`` it, then ``heartbeat`` and ``notices.run`` run beside it."""

    def __init__(
        self,
        task: WorkerTask,
        store: ParameterStore,
        limits: Limits,
        *,
        request_id: str,
        log_stream: str = "",
        deadline: float,
        on_abort: Callable[[Failure], None],
        clock: Callable[[], float] = time.monotonic,
        nonce: Callable[[], str] = secrets.token_hex,
    ) -> None:
        self.task = task
        self.store = store
        self.keys = GenerationKeys(task.job_id, task.generation)
        self.limits = limits
        self.notices = Notices(store, self.keys, task.rank, self._on_control)
        self.clock = clock
        self.deadline = deadline
        """When this rank's function ends, by its clock."""
        self.standings: dict[int, int] = {}
        """Ranks that have said, at an ending, what step they hold."""
        self.state = "claimed"
        self.step = 0
        self.trained = 0
        """Training steps done: what a user calls the step."""
        self.has_gained = False
        """Whether this rank holds a newer state than the generation began with."""
        self.aborted: Failure | None = None
        self.retired = False
        """Whether this rank's environment is not to serve the job again: it is slow, or unfit."""
        self.waits_for = ""
        """What this rank waits for that no other rank has to give, in words."""
        self.digests: dict[int, dict[str, int]] = {}
        """By rank: digests of the tensors that it holds, told when they were found to differ."""
        self._news = asyncio.Event()
        self._on_abort = on_abort
        # Two deliveries of one event carry one request id; the nonce tells them apart.
        self._claim = f"{request_id}/{nonce()}".encode()
        # What the client reads in the log of this invocation is told of this rank.
        self._invocation = {"request": request_id.encode(), "stream": log_stream.encode()}
        self._stop = StepFlag(0)
        self._client_seen = clock()

    @property
    def ttl_s(self) -> float:
        """Longer than anything of this generation can be needed."""
        return self.limits.function_s + self.limits.start_s + self.limits.save_s

    @property
    def store_is_lost(self) -> bool:
        """The parameter store has failed: nobody can be told anything through it any more."""
        return isinstance(self.notices.failure, StoreError)

    async def join(self) -> Roster | None:
        """Claim the rank and wait for the roster; None when this invocation is not wanted.

        Raises:
            StoreError: the parameter store is not there, or not this generation's.
        """
        await self.store.check(self.keys.marker)
        stands = await self.store.first(
            self.keys.claim(self.task.rank),
            self._claim,
            guard=self.keys.marker,
            ttl_s=self.ttl_s,
            stream=self.keys.control,
            fields={"event": b"claimed", "rank": b"%d" % self.task.rank, **self._invocation},
        )
        if stands != self._claim:
            return None  # another delivery of the same event came first
        await self._renew()
        after = {self.keys.control: "0-0"}
        give_up = self.clock() + self.limits.start_s + self.limits.lease_s
        while self.clock() < give_up:
            marker, packed, abort = await self.store.values(
                [self.keys.marker, self.keys.roster, self.keys.abort]
            )
            # No roster will come into a store that has lost the generation.
            if abort is not None or marker is None:
                return None
            if packed is not None:
                return self._take_place(Roster.unpack(packed))
            for notice in await self.store.read(after, wait_s=_POLL_S):
                after[notice.stream] = notice.id
            await self._renew()
        return None

    def _take_place(self, roster: Roster) -> Roster | None:
        if self.task.rank not in roster.ranks:
            return None
        # Ranks are counted anew where one has not come.
        place = roster.ranks.index(self.task.rank)
        # The client has just fixed the roster, however long the slowest rank let it wait.
        self._client_seen = self.clock()
        self.notices = Notices(self.store, self.keys, place, self._on_control)
        return roster

    async def heartbeat(self) -> None:
        """Renew the lease, and watch marker and client, until cancelled."""
        try:
            while True:
                await self._renew()
                marker, client = await self.store.values([self.keys.marker, self.keys.client])
                if marker is None:
                    raise StoreLostError(
                        "the parameter store has lost this generation: it was restarted or flushed"
                    )
                if client is not None:
                    self._client_seen = self.clock()
                self._cut_wait()
                await asyncio.sleep(self.limits.heartbeat_s)
        except SmltError as error:
            self.notices.fail(error)

    def _cut_wait(self) -> None:
        """End the generation in the middle of a step if time runs out while others are waited for.

        Only for the sake of a state that would be lost: so every generation that is cut has taken
        a step, and no job is cut for ever. A rank that has gained nothing can only gain by waiting.
        """
        awaited, limits = self.notices.waiting_for, self.limits
        if self.has_gained and awaited and self.clock() > self.deadline - limits.cut_margin_s:
            self.notices.fail(
                HandoverError(f"waited for {awaited} until its function's time was nearly over")
            )

    async def say(self, state: str) -> None:
        """Change what the lease says this rank is doing, at once."""
        self.state = state
        await self._renew()

    async def _renew(self) -> None:
        self._check_store()
        state = RankState(
            rank=self.task.rank,
            state=self.state,
            step=self.trained,
            pid=os.getpid(),
            waiting_for=self.notices.waiting_for or self.waits_for,
        )
        await self.store.renew(
            self.keys.lease(self.task.rank),
            msgpack.packb(state.to_dict()),
            ttl_s=self.limits.lease_s,
        )

    def flags(self) -> StepFlag:
        """Why this rank wants to stop, decided once for a step."""
        flags = self._stop
        if self.clock() > self.deadline - self.limits.handover_margin_s:
            flags |= StepFlag.HANDOVER
        if self.clock() > self._client_seen + self.limits.client_lease_s + self.limits.orphan_s:
            flags |= StepFlag.ORPHANED
        return flags

    async def report(self, report: WorkerReport) -> None:
        """Tell the client something; a store that fails is found by others."""
        fields = {"report": bytes(msgpack.packb(report.to_dict()))}
        await self.store.announce(self.keys.reports, fields, guard=self.keys.marker)

    async def announce(self, event: str, step: int) -> None:
        """Tell everybody of this rank's part in a beginning or an ending."""
        await self._announce(event, step=b"%d" % step)

    async def tell_digests(self, digests: Mapping[str, int]) -> None:
        """Tell everybody what this rank holds, tensor by tensor."""
        await self._announce("digests", digests=bytes(msgpack.packb(dict(digests))))

    async def leave(self, reasons: StepFlag) -> None:
        """Say that this rank has nothing more to do in the generation, and why it stopped."""
        await self._announce("left", reasons=b"%d" % reasons)
        await self.say("left")

    async def retire(self) -> None:
        """Say that this rank's environment is not to serve the job again."""
        self.retired = True
        await self._announce("retire")

    async def outstay(self) -> None:
        """Wait until the next generation has its ranks, so that none of them comes to run here.

        As long as an invocation runs, Lambda sends its environment no other.
        """
        succeeding = GenerationKeys(self.task.job_id, self.task.generation + 1)
        # Not for all of its start: where no more functions may run, its rank waits for this one.
        give_up = min(self.clock() + self.limits.start_s / 3, self.deadline - self.limits.lease_s)
        with contextlib.suppress(StoreError):
            while self.clock() < give_up:
                if (await self.store.values([succeeding.roster]))[0] is not None:
                    return
                await asyncio.sleep(_POLL_S)

    def _check_store(self) -> None:
        """Do not wait out the store's time limit again and again once it has failed."""
        if self.store_is_lost:
            raise StoreUnreachableError("the parameter store has failed before")

    async def _announce(self, event: str, **fields: bytes) -> None:
        self._check_store()
        fields |= {"event": event.encode(), "rank": b"%d" % self.task.rank}
        await self.store.announce(self.keys.control, fields, guard=self.keys.marker)

    async def next_news(self, limit_s: float) -> None:
        """Wait for the next notice on the control stream, but not longer than the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        self._news.clear()

    async def abort(self, failure: Failure) -> Failure:
        """End the generation for everybody; return the failure that stands, ours or an earlier."""
        packed = bytes(msgpack.packb(failure.to_dict()))
        stands = await self.store.first(
            self.keys.abort,
            packed,
            guard=self.keys.marker,
            ttl_s=self.ttl_s,
            stream=self.keys.control,
            fields={"event": b"abort", "failure": packed},
        )
        self.aborted = Failure.from_dict(msgpack.unpackb(stands))
        return self.aborted

    def _on_control(self, fields: Mapping[str, bytes]) -> None:
        event = fields["event"]
        if event == b"stop":
            self._stop |= StepFlag(int(fields["reason"]))
        elif event == b"retire":
            self.retired |= int(fields["rank"]) == self.task.rank
        elif event == b"standing":
            self.standings[int(fields["rank"])] = int(fields["step"])
        elif event == b"digests":
            self.digests[int(fields["rank"])] = msgpack.unpackb(fields["digests"])
        elif event == b"abort":
            self.aborted = Failure.from_dict(msgpack.unpackb(fields["failure"]))
            self.notices.fail(AbortedError(self.aborted.message))
            self._on_abort(self.aborted)
        self._news.set()
