"""A process's life in a drop-in session: seat, forming, failing and leaving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self

from smlt.aggregation.heartbeat import Heartbeat
from smlt.aggregation.rendezvous import Rendezvous, unpack_error
from smlt.aggregation.session_settings import SESSION_S, SessionLimits, SessionSpec
from smlt.aggregation.standing import Seat, Sign
from smlt.errors import (
    AbortedError,
    FrameError,
    RankMissingError,
    SmltError,
    StoreFullError,
    StoreLostError,
    StoreUnreachableError,
    UserError,
)
from smlt.io.parameter_store import ParameterStore, written_by_us

logger = logging.getLogger(__name__)


class Session:
    """An async context manager: entering takes the seat, leaving gives it up.

    ``formed`` returns when all ranks are there; until then a session that comes to a bad end is
    left for the next one without anybody noticing. From then on it is immutable: whatever goes
    wrong on any rank ends it for all.
    """

    def __init__(
        self,
        store: ParameterStore,
        job: str,
        rank: int,
        spec: SessionSpec,
        limits: SessionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self.store = store
        self.job = job
        self.rank = rank
        self.spec = spec
        self.limits = limits
        self.sign = Sign(rank, f"process {os.getpid()} on {socket.gethostname()}")
        self.failure: SmltError | None = None
        self.on_failure: list[Callable[[SmltError], None]] = []
        """Called once, when the session ends by anything but everybody's leaving."""
        self.frames: set[str] = set()
        """What the keys of frames begin with: nobody needs those of a session that is over."""
        self.awaited: list[Callable[[], str]] = []
        """Asked for what has been waited for the longest, in words; empty when nothing is."""
        self._rendezvous = Rendezvous(store, job, spec, limits, self.sign, clock=clock, draw=draw)
        self._heartbeat = Heartbeat(
            store, job, self._rendezvous, self.sign, spec.world_size, limits, clock=clock
        )
        self.under_way = 0
        """Operations that wait for other ranks."""
        self._seat: Seat | None = None
        self._left: dict[int, int] = {}
        self._told = False
        self._failing = asyncio.Lock()
        self._formed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._seat = await self._rendezvous.find_seat()
        beating = self._heartbeat.run(lambda: self.seat, self._formed.is_set, self._waits_for)
        self._tasks = [
            asyncio.create_task(self._watched(beating)),
            asyncio.create_task(self._watched(self._follow())),
        ]
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        await self.close(exc)

    @property
    def seat(self) -> Seat:
        if self._seat is None:
            raise AbortedError(
                f"job {self.job!r} has not been joined: use it in a `with` statement"
            )
        return self._seat

    async def formed(self) -> None:
        """Return when all ranks are there.

        Raises:
            RankMissingError: they were not within the time limit; names them.
            SmltError: what ended the session.
        """
        try:
            async with asyncio.timeout(self.limits.step_s):
                await self._formed.wait()
        except TimeoutError:
            standing = await self._rendezvous.standing(self.seat.keys, self.spec.world_size)
            missing = [r for r in range(self.spec.world_size) if r not in standing.live]
            what = f"step 0 has waited for its shard 0 for {self.limits.step_s:g} s"
            raise await self.fail(self._missing(missing or [self.rank], what)) from None
        self.check()

    def check(self) -> None:
        """Raise what ended the session, if anything has."""
        if self.failure is not None:
            raise self.failure

    async def fail(self, error: SmltError) -> SmltError:
        """End the session for all ranks; return the error to raise here."""
        async with self._failing:  # the first may still be finding out which reason stands
            if not self._told:
                self._told = True
                error = self.failure or error
                if isinstance(error, StoreFullError):
                    await self._make_room()
                if not isinstance(error, StoreUnreachableError):
                    # Its end may be on record: a successor sweeps, which looks like a loss.
                    error = await self._tell(error)
                self.fall(error)
        return self.failure or error

    async def _make_room(self) -> None:
        """Free the frames, so that the end can be told and other jobs go on."""
        with contextlib.suppress(SmltError):
            for prefix in sorted(self.frames):
                await self.store.sweep(prefix)

    async def _tell(self, error: SmltError) -> SmltError:
        """End the session in the store; return the reason that stands, if not this rank's."""
        told = type(error)(f"{error} (rank {self.rank} says so)")
        try:
            stands = await self._rendezvous.end(self.seat.session, self.seat.keys, told)
        except SmltError:
            return error
        return error if str(stands) == str(told) else stands

    async def explain(self, error: RankMissingError | FrameError, operation: int) -> SmltError:
        """Name the ranks that are not at an operation, or do another: why it has failed here."""
        if isinstance(error, FrameError):
            # Nobody was waited for: others may have yet to say where they are.
            await asyncio.sleep(2 * self.limits.heartbeat_s)
        try:
            standing = await self._rendezvous.standing(self.seat.keys, self.spec.world_size)
        except SmltError:
            return error
        if odds := standing.odds(self.sign):
            return UserError(odds)
        if isinstance(error, FrameError):
            return error
        signs = {rank: sign for rank, (_, sign) in standing.live.items()}
        missing = [
            rank
            for rank in range(self.spec.world_size)
            if rank != self.rank and (rank not in signs or signs[rank].operation < operation)
        ]
        what = str(error) if "in step" in str(error) else f"{error}, in step {operation}"
        return self._missing(missing, what) if missing else error

    def _missing(self, ranks: list[int], what: str) -> RankMissingError:
        names = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        verb = "has" if len(ranks) == 1 else "have"
        return RankMissingError(f"{names} of job {self.job!r} {verb} not come: {what}")

    async def close(self, exc: BaseException | None = None) -> None:
        """Leave. The last one to go sweeps; an exception is an end for all ranks.

        Never raises for a store: the work is done or has failed already.
        """
        if self._seat is None:
            return
        try:
            if exc is not None:
                reason = f"{type(exc).__name__}: {exc}".rstrip(": ")
                await self.fail(AbortedError(f"rank {self.rank} left by {reason}"))
            elif self.failure is not None:
                await self.fail(self.failure)  # others may not know of an interruption here
        finally:
            await self._cancel()
        try:
            await self._leave(self._seat)
        except SmltError as error:
            logger.warning("rank %d leaves job %s without a word: %s", self.rank, self.job, error)
        self._seat = None

    async def _leave(self, seat: Seat) -> None:
        lease = self._rendezvous.keys.lease(seat.keys.generation, seat.nonce)
        self.sign.left = True
        await self.store.renew(lease, self.sign.pack(), ttl_s=SESSION_S)
        with contextlib.suppress(StoreLostError):
            await self._say(seat, "left", operation=b"%d" % self.sign.operation)
        standing = await self._rendezvous.standing(seat.keys, self.spec.world_size)
        if not standing.live:
            await self._rendezvous.end(seat.session, seat.keys, AbortedError("all ranks have left"))
            await self._rendezvous.forget(seat.session, seat.keys)

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _watched(self, life: Coroutine[Any, Any, None]) -> None:
        try:
            await life
        except SmltError as error:
            await self.fail(error)

    def fall(self, error: SmltError) -> None:
        """End the session on this rank: nothing waits any longer. The first error stands."""
        if self.failure is not None:
            return
        self.failure = error
        self._formed.set()
        for callback in self.on_failure:
            callback(error)

    def _waits_for(self) -> str:
        if not self.under_way:
            return ""
        return next((words for ask in self.awaited if (words := ask())), "it")

    def begins(self, operation: int, what: str) -> None:
        """Note that this rank begins an operation: ``what``, in words equal on all ranks.

        Raises:
            RankMissingError: another rank has left before it.
        """
        self.check()
        if operation > self.sign.operation:
            self.sign.operation, self.sign.doing = operation, what
        self._look_for_leavers()

    def _look_for_leavers(self) -> None:
        for rank, operation in self._left.items():
            if operation < self.sign.operation:
                raise RankMissingError(
                    f"rank {rank} of job {self.job!r} has left after {operation + 1} operations;"
                    f" step {self.sign.operation} waits for its shard 0 in vain"
                )

    async def _follow(self) -> None:
        """Form the session, over as many attempts as it takes, and hear of its end."""
        while not await self._form():
            self._left.clear()
            self._seat = await self._rendezvous.find_seat()

    async def _form(self) -> bool:
        """Return False when the session ended before all ranks were there."""
        seat, everyone = self.seat, set(range(self.spec.world_size))
        claimed: set[int] = set()
        ready: set[int] = set()
        after = {seat.keys.control: "0-0"}
        while True:
            notices = await self.store.read(after, wait_s=self.limits.heartbeat_s)
            for notice in notices:
                after[notice.stream] = notice.id
                if notice.fields.get("event") == b"end":
                    # Who has failed may have heard before this rank that all were ready.
                    if not self._formed.is_set() and ready != everyone:
                        await self._hopeless(seat)
                        return False
                    self._told = True
                    self.fall(unpack_error(notice.fields.get("error", b"")))
                    return True
                with written_by_us("a notice"):
                    self._hear(notice.fields, {b"claimed": claimed, b"ready": ready})
            if self._formed.is_set():
                continue
            if not notices and await self._hopeless(seat):
                return False
            # Two rounds: that all have claimed may be told by the dead, that all are ready cannot.
            if claimed == everyone and self.rank not in ready:
                ready.add(self.rank)
                if not await self._say_ready(seat):
                    return False
            if ready == everyone:
                await self._close_roster(seat)

    def _hear(self, fields: Mapping[str, bytes], coming: Mapping[bytes, set[int]]) -> None:
        """Take in what a rank says of itself: that it has come, or has left."""
        rank = int(fields["rank"])
        if fields["event"] == b"left":
            self._left[rank] = int(fields["operation"])
            self._look_for_leavers()
        else:
            coming[fields["event"]].add(rank)

    async def _hopeless(self, seat: Seat) -> bool:
        ending = await self._rendezvous.ending(seat.session)
        if isinstance(ending, RankMissingError):
            raise ending  # others have waited in vain: neither is there any use in this rank's
        if ending is not None:
            return True
        standing = await self._rendezvous.standing(seat.keys, self.spec.world_size)
        holder = standing.holders.get(self.rank)
        if holder is None or holder[0] != seat.nonce:
            return True  # the store has forgotten the session
        if standing.verdict and not standing.formed:
            await self._rendezvous.end(seat.session, seat.keys, AbortedError(standing.verdict))
            return True
        return False

    async def _say_ready(self, seat: Seat) -> bool:
        try:
            await self._say(seat, "ready")
        except StoreLostError:
            return False
        return True

    async def _say(self, seat: Seat, event: str, **fields: bytes) -> None:
        fields |= {"event": event.encode(), "rank": b"%d" % self.rank}
        await self.store.announce(
            seat.keys.control, fields, guard=seat.keys.marker, ttl_s=SESSION_S
        )

    async def _close_roster(self, seat: Seat) -> None:
        await self.store.first(seat.keys.roster, b"formed", guard=seat.keys.marker, ttl_s=SESSION_S)
        self._formed.set()
