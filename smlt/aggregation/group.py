"""Collective operations on flat arrays among the ranks of a session, or some of them.

Averages and sums of float32 go through the sharded step (``step.py``), a few of them at a time:
each in a lane, a chain of steps with streams of its own. Everything else is an exchange of bytes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation import parcels
from smlt.aggregation.exchange import Bytes, Exchange
from smlt.aggregation.folds import fold
from smlt.aggregation.lanes import Flat, Lane, Readiness
from smlt.aggregation.plan_trials import PlanTrials, trials_of
from smlt.aggregation.session import Session
from smlt.aggregation.transfer import Membership, shard_threads
from smlt.aggregation.wire import LOSSLESS, Wire
from smlt.errors import AbortedError, FrameError, RankMissingError, SmltError, UserError
from smlt.io.threads import Threads

T = TypeVar("T")
Operation = Callable[[], Coroutine[Any, Any, None]]
"""Has its number among the operations of its group; call it once, and await what it returns."""

# Below this size every rank folds everything, in one round trip; above it, a piece each, in two.
_WHOLE_BYTES = 128 << 10


class Group:
    """An async context manager. Its methods number an operation; calling the result does it.

    Every rank of the group has to call the same operations in the same order; those under way
    overlap. An error ends the session for all ranks. ``name`` tells groups of a session apart, and
    must not be used twice.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str = "",
        rank: int | None = None,
        world_size: int | None = None,
        limit_s: float | None = None,
        threads: Callable[[], Threads] = shard_threads,
    ) -> None:
        spec = session.spec
        self.session = session
        self.rank = session.rank if rank is None else rank
        self.world_size = spec.world_size if world_size is None else world_size
        self._name = name
        self._limit_s = session.limits.step_s if limit_s is None else limit_s
        self._threads = threads()
        self._lanes: list[Lane] = []
        self._agreements = itertools.count()
        self._operations = itertools.count()
        self._reductions = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        session = self.session
        members = [self._members(lane) for lane in range(session.spec.lanes)]
        self._lanes = [Lane(member) for member in members]
        self._exchange = Exchange(
            session.store,
            replace(session.seat.keys, lane=f"{self._name}x"),
            self.rank,
            self.world_size,
            ttl_s=self._ttl_s,
            limit_s=self._limit_s,
            offload=self._threads.run,
        )
        session.on_failure.append(self._fail)
        session.awaited.append(self._awaited)
        session.frames |= self._frames()
        if self.world_size > 1:
            runs = [self._exchange.run(), *(lane.notices.run() for lane in self._lanes)]
            self._tasks = [asyncio.create_task(run) for run in runs]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.session.on_failure.remove(self._fail)
        self.session.awaited.remove(self._awaited)
        self.session.frames -= self._frames()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._exchange.close()
        self._threads.close()

    @property
    def _ttl_s(self) -> float:
        # A frame is fetched within two waits or never: the expiry sweeps up after the dead.
        return 2 * self._limit_s + 60

    def _members(self, lane: int) -> Membership:
        return Membership(
            store=self.session.store,
            keys=replace(self.session.seat.keys, lane=f"{self._name}{lane}"),
            rank=self.rank,
            world_size=self.world_size,
            ttl_s=self._ttl_s,
            limit_s=self._limit_s,
            offload=self._threads.run,
        )

    def _fail(self, error: SmltError) -> None:
        for lane in self._lanes:
            lane.fail(error)
        self._exchange.fail(error)

    def _frames(self) -> set[str]:
        lanes = (*map(str, range(len(self._lanes))), "x")
        keys = self.session.seat.keys
        return {replace(keys, lane=f"{self._name}{lane}").lane_prefix for lane in lanes}

    def _awaited(self) -> str:
        return next((words for lane in self._lanes if (words := lane.notices.waiting_for)), "")

    def trials(self, elements: int, *, tries: bool = False) -> PlanTrials:
        """Return in what ways a float32 buffer of this length is to be averaged, again and again.

        With ``tries`` in several, if the session's settings leave it open.
        """
        spec = self.session.spec
        owners = None if spec.aggregators is None else min(spec.aggregators, self.world_size)
        return trials_of(
            elements,
            self.world_size,
            shard_bytes=spec.shard_bytes,
            aggregators=owners,
            tries=tries and spec.tries_plans,
            wire_dtype=spec.wire_dtype if tries else LOSSLESS,
        )

    def reduce_flat(
        self,
        flat: Flat,
        *,
        weight: float,
        what: str,
        readiness: Readiness | None = None,
        wire: Wire | None = None,
        lane: int | None = None,
        trials: PlanTrials | None = None,
    ) -> Operation:
        """Replace ``flat`` on all ranks by the sum of all, divided by the sum of the weights.

        Without ``readiness`` all of it is ready. ``what`` describes the operation in words, equal
        on all ranks. Those of one ``wire`` go one after the other: in one ``lane``, a number that
        is equal on all ranks. While ``trials`` are not over, no other reduction begins.

        Raises:
            SmltError: the session is over; what ``flat`` holds is undefined.
        """
        chosen = next(self._reductions) if lane is None else lane
        chain = self._lanes[chosen % len(self._lanes)]
        step = next(self._operations)
        turn = chain.next_turn()
        work = partial(
            chain.reduce,
            *(turn, step, trials or self.trials(flat.size), flat),
            weight=weight,
            what=what,
            readiness=readiness,
            wire=wire,
            check=self.session.check,
        )
        return partial(self._guarded, step, what, work)

    def agree(self, layout: bytes, what: Callable[[bytes], str]) -> Operation:
        """Check that the other ranks are about to reduce the same; the first one to come rules.

        Raises:
            UserError: they are not: ``what(theirs)`` says in words how theirs differs.
        """
        number = next(self._agreements)
        return partial(self._guarded, -1, "", partial(self._agree, number, layout, what))

    async def _agree(self, number: int, layout: bytes, what: Callable[[bytes], str]) -> None:
        keys = replace(self.session.seat.keys, lane=self._name)
        stands = await self.session.store.first(
            keys.layout(number), layout, guard=keys.marker, ttl_s=self._ttl_s
        )
        if stands != layout:
            raise UserError(what(stands))

    def all_reduce(self, array: NDArray[Any], op: str) -> Operation:
        """Fold a contiguous array of any dtype over all ranks, in place."""
        step = next(self._operations)
        what = f"all_reduce {op} of {array.size} {array.dtype}"
        work = partial(self._all_reduce, str(step), array, op, what)
        return partial(self._guarded, step, what, work)

    async def _all_reduce(self, label: str, array: NDArray[Any], op: str, what: str) -> None:
        flat = array.reshape(-1)
        if array.nbytes <= _WHOLE_BYTES:
            every = np.empty((self.world_size, flat.size), flat.dtype)
            await parcels.all_gather(
                self._exchange, label, as_bytes(flat), [as_bytes(row) for row in every], what=what
            )
            await asyncio.to_thread(fold, every, op, flat)
            return
        pieces = np.array_split(flat, self.world_size)
        await self._fold_pieces(f"{label}.a", pieces, pieces[self.rank], op, what)
        own = pieces[self.rank].copy()
        places = [as_bytes(piece) for piece in pieces]
        await parcels.all_gather(self._exchange, f"{label}.b", as_bytes(own), places, what=what)

    def reduce_scatter(
        self, pieces: Sequence[NDArray[Any]], out: NDArray[Any], op: str
    ) -> Operation:
        """Fold piece r of every rank on rank r, into ``out``."""
        step = next(self._operations)
        what = f"reduce_scatter {op} of {sum(p.size for p in pieces)} {out.dtype}"
        work = partial(self._fold_pieces, str(step), pieces, out, op, what)
        return partial(self._guarded, step, what, work)

    async def _fold_pieces(
        self, label: str, pieces: Sequence[NDArray[Any]], out: NDArray[Any], op: str, what: str
    ) -> None:
        every = np.empty((self.world_size, out.size), out.dtype)
        outgoing = [as_bytes(piece) for piece in pieces]
        incoming = [as_bytes(row) for row in every]
        await parcels.all_to_all(self._exchange, label, outgoing, incoming, what=what)
        await asyncio.to_thread(fold, every, op, out.reshape(-1))

    def all_gather(self, own: Bytes, incoming: Sequence[Bytes], *, what: str) -> Operation:
        """Fill ``incoming[r]`` with the bytes of each rank r."""
        return self._exchanged(what, partial(parcels.all_gather, own=own, incoming=incoming))

    def all_to_all(
        self, outgoing: Sequence[Bytes | None], incoming: Sequence[Bytes | None], *, what: str
    ) -> Operation:
        """Send ``outgoing[r]`` to rank r, fill ``incoming[r]`` from it; None skips."""
        return self._exchanged(
            what, partial(parcels.all_to_all, outgoing=outgoing, incoming=incoming)
        )

    def broadcast(self, data: Bytes, root: int, *, what: str) -> Operation:
        """Send the root's bytes into everybody's."""
        return self._exchanged(what, partial(parcels.broadcast, data=data, root=root))

    async def send(self, label: str, data: Bytes, to: int) -> None:
        """Send to one rank under a label that both know; returns when it has been fetched."""
        await self._guarded(-1, "", partial(self._exchange.send, label, data, to))

    async def receive(self, labels: Sequence[tuple[str, int]], out: Bytes) -> int:
        """Receive the first that comes of several (label, source); return its index."""
        return await self._guarded(-1, "", partial(self._exchange.fetch, labels, out, what="send"))

    def barrier(self) -> Operation:
        """Return when every rank has called it."""
        return self.reduce_flat(np.empty(0, np.float32), weight=1.0, what="barrier")

    def _exchanged(self, what: str, call: Callable[..., Coroutine[Any, Any, None]]) -> Operation:
        step = next(self._operations)
        work = partial(call, self._exchange, str(step), what=what)
        return partial(self._guarded, step, what, work)

    async def _guarded(self, step: int, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an operation; whatever is wrong with it ends the session."""
        session = self.session
        session.under_way += 1
        try:
            session.begins(-1 if self._name else step, what)
            try:
                return await work()
            except (RankMissingError, FrameError) as error:
                named = step >= 0 and not self._name
                raise (await session.explain(error, step) if named else error) from None
        except SmltError as error:
            raise await session.fail(error) from None
        except asyncio.CancelledError:
            session.fall(AbortedError(f"rank {session.rank} was interrupted at step {step}"))
            raise
        finally:
            session.under_way -= 1


def as_bytes(array: NDArray[Any]) -> Bytes:
    """View a contiguous array as flat bytes."""
    return array.reshape(-1).view(np.uint8)
