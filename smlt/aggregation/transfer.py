"""One rank's way to the parameter store: put shards, and fetch what others have put."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from smlt._core import codec
from smlt.aggregation.notices import Arrival, Notices
from smlt.aggregation.phases import DL_GRAD, DL_SHARD, UL_AGGR, UL_SHARD, Phases
from smlt.aggregation.plan_trials import TRANSFERS
from smlt.errors import FrameError, StoreFullError
from smlt.io import frame
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import ParameterStore
from smlt.io.threads import Threads

# Below this size a hop to another thread costs more than the work. Above, hops cost CPU time
# (a sixth at 4 MB) but keep the event loop moving frames: steps took 0.7 of the time.
_OFFLOAD_BYTES = 512 << 10
_PATIENCE_FOR_MEANS = 1.25
# Presence bits and metrics are far smaller; a frame with more gets memory of its own.
_USUAL_META_BYTES = 8 << 10

Shard = NDArray[np.float32]
Room = NDArray[np.uint8]
Result = TypeVar("Result")
Offload = Callable[..., Awaitable[Any]]
"""Run a function on another thread, and return or raise when it has ended, not before."""


async def where_it_pays(
    offload: Offload, nbytes: int, function: Callable[..., Result], *args: Any
) -> Result:
    """Run a function in a thread if it works on much memory; it has ended when this has."""
    if nbytes < _OFFLOAD_BYTES:
        return function(*args)
    result: Result = await offload(function, *args)
    return result


def shard_threads() -> Threads:
    """Return threads whose ``run`` is a ``Membership.offload``; close them in the end."""
    return Threads(4, "smlt-shards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who takes part in a generation, and through what."""

    store: ParameterStore
    keys: GenerationKeys
    rank: int
    world_size: int
    ttl_s: float
    """Expiry of frames; it only sweeps up after the dead."""
    limit_s: float
    """How long a rank may be kept waiting without anything arriving."""
    offload: Offload
    """What takes long with a shard is done by it."""
    carried_bytes: int = 128 << 10
    """Shards up to this size travel in their notices, which saves a round trip for each reader."""
    clock: Callable[[], float] = time.perf_counter


class Transfer:
    """Moves frames, a few at a time each way. Lasts as long as the generation.

    The memory that frames are received into is kept: fresh pages cost as much as the transfer.
    """

    def __init__(self, members: Membership, notices: Notices) -> None:
        self.members = members
        self.notices = notices
        self._spare: list[Room] = []
        self.allow(TRANSFERS)

    def allow(self, transfers: int) -> None:
        """Have at most so many frames under way in each direction; between two steps."""
        self._uploads = asyncio.Semaphore(transfers)
        self._downloads = asyncio.Semaphore(transfers)

    async def put(
        self,
        arrival: Arrival,
        nbytes: int,
        encode: Callable[[], frame.Pieces],
        phases: Phases,
        *,
        stream: str,
        keep: int,
        carried: bool,
    ) -> None:
        """Put the frame of ``nbytes``; announce it on a stream that keeps its last notices."""
        members = self.members
        async with self._uploads:
            with phases.during(UL_AGGR if arrival.is_mean else UL_SHARD, arrival.shard):
                await members.store.put(
                    self.key(arrival),
                    await self.offload(nbytes, encode),
                    stream=stream,
                    fields=arrival.fields,
                    guard=members.keys.marker,
                    ttl_s=members.ttl_s,
                    maxlen=keep,
                    carried=carried,
                )

    async def fetch(
        self, arrival: Arrival, nbytes: int, use: Callable[[memoryview], Result], phases: Phases
    ) -> tuple[Result, Room | None]:
        """Wait for a shard of ``nbytes`` and return what ``use`` makes of its frame.

        The frame lies in the room, which belongs to the caller until he gives it back, or came with
        its notice and needs none. One that ``use`` finds to be damaged is asked for once more.

        Raises:
            RankMissingError: nothing came within the limit.
            StoreFullError: it was announced, and is gone.
            FrameError: it was damaged, or another than expected, both times.
        """
        # An owner that lacks a contribution knows whose: it has the first word.
        patience = _PATIENCE_FOR_MEANS if arrival.is_mean else 1.0
        carried = await self.notices.wait(arrival, patience * self.members.limit_s)
        phase = DL_GRAD if arrival.is_mean else DL_SHARD
        if carried is not None:
            with phases.during(phase, arrival.shard, arrival.rank):
                return await self._use_carried(arrival, carried, use), None
        async with self._downloads:
            with phases.during(phase, arrival.shard, arrival.rank):
                room = self._take(codec.frame_bound(nbytes, _USUAL_META_BYTES))
                try:
                    return await self._use(arrival, nbytes, use, room), room
                except FrameError:
                    return await self._use(arrival, nbytes, use, room), room

    async def _use(
        self, arrival: Arrival, nbytes: int, use: Callable[[memoryview], Result], room: Room
    ) -> Result:
        most = codec.frame_bound(nbytes, frame.MAX_META_BYTES)
        data = await self.members.store.get(self.key(arrival), into=room.data, max_bytes=most)
        if data is None:
            raise self._gone(arrival)
        try:
            return await self.offload(nbytes, use, data)
        except FrameError as error:
            raise FrameError(f"{self.key(arrival)}: {error}") from error

    async def _use_carried(
        self, arrival: Arrival, data: bytes, use: Callable[[memoryview], Result]
    ) -> Result:
        try:
            return use(memoryview(data))
        except FrameError:
            again = await self.notices.again(arrival)
        if again is None:
            raise self._gone(arrival)
        try:
            return use(memoryview(again))
        except FrameError as error:
            raise FrameError(f"{self.key(arrival)}: {error}") from error

    def _gone(self, arrival: Arrival) -> StoreFullError:
        return StoreFullError(
            f"{self.key(arrival)} was announced and is gone: the parameter store evicts or expires "
            "frames (it needs maxmemory-policy noeviction and room for two steps)"
        )

    def _take(self, nbytes: int) -> Room:
        room = self._spare.pop() if self._spare else None
        return room if room is not None and room.size >= nbytes else np.empty(nbytes, np.uint8)

    def give_back(self, rooms: Iterable[Room | None]) -> None:
        """Take rooms back that nothing refers to any more."""
        self._spare += [room for room in rooms if room is not None]

    async def offload(self, nbytes: int, function: Callable[..., Result], *args: Any) -> Result:
        """Run a function where it pays, by the threads of this rank."""
        return await where_it_pays(self.members.offload, nbytes, function, *args)

    def key(self, arrival: Arrival) -> str:
        keys = self.members.keys
        if arrival.is_mean:
            return keys.mean(arrival.step, arrival.shard)
        return keys.contribution(arrival.step, arrival.shard, arrival.rank)
