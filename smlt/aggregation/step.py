"""One all-reduce of a flat buffer through the parameter store (protocol, A step).

Each rank puts the shards it does not own; each owner reduces its shards in the fixed order of
ranks while others still arrive, and puts the mean; every rank fetches the means into its buffer.
Uploads, reductions and downloads overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np

from smlt.aggregation.metric_sums import added
from smlt.aggregation.notices import Arrival
from smlt.aggregation.phases import REDUCE, Phases
from smlt.aggregation.shard_plan import ShardPlan
from smlt.aggregation.transfer import Room, Shard, Transfer
from smlt.aggregation.window import in_order
from smlt.aggregation.wire import LOSSLESS, Wire
from smlt.errors import FrameError
from smlt.io import frame
from smlt.io.together import together

# Shards that an owner reduces at once, and contributions to one of them fetched ahead: together
# they bound the memory of an owner. The store buffers the rest.
_REDUCTIONS = 2
_AHEAD = 3
# What a rank has in its memory of frames that came with their notices, from each stream.
_CARRIED_BYTES = 8 << 20
# Notices that are given twice, beyond as many as there are in a step.
_REPEATS = 8


@dataclass(slots=True)
class StepResult:
    """What all ranks hold alike after a step; the means themselves are in the buffer."""

    flags: int
    """OR over all ranks and shards."""
    weight: float
    """Total weight of the contributions."""
    metas: list[frame.Meta]
    """Merged, one for each shard."""


class AllReduce:
    """The all-reduce of one step. Call ``ready`` as shards become final, and await ``run``.

    The buffer belongs to the step until ``run`` returns; from then on it holds the means.
    """

    def __init__(
        self,
        transfer: Transfer,
        plan: ShardPlan,
        flat: Shard,
        *,
        step: int,
        weight: float,
        flags: int,
        meta: Callable[[int], frame.Meta],
        wire: Wire,
        stale: Sequence[str] = (),
        trace: bool = False,
    ) -> None:
        self._transfer = transfer
        self._rank = transfer.members.rank
        self._world_size = transfer.members.world_size
        self._plan = plan
        self._flat = flat
        self._step = step
        self._weight = weight
        self._flags = flags
        self._meta = meta
        self._wire = wire
        self._stale = list(stale)
        self._ready = [asyncio.Event() for _ in range(plan.shards)]
        self._settled = asyncio.Event()
        self._reductions = asyncio.Semaphore(_REDUCTIONS)
        self.phases = Phases(transfer.members.clock, trace=trace)
        self._result = StepResult(0, 0.0, [frame.Meta()] * plan.shards)
        self._carried = self._travels_in_notices()

    def ready(self, shard: int) -> None:
        """Say that the shard's gradient is final. On the event loop's thread."""
        self._ready[shard].set()

    async def run(self) -> StepResult:
        """Take part in every shard; return when all means are in the buffer.

        Raises:
            RankMissingError, StoreError, FrameError: why the generation must be aborted.
            AbortedError: it has been.
        """
        # An abort also ends what waits for no notice: backward, or a store that hangs.
        async with self._transfer.notices.unless_failed():
            await together(self._parts())
        self._wire.is_whole = True
        self._transfer.notices.forget(self._step)
        return self._result

    def _parts(self) -> Iterator[Coroutine[Any, Any, None]]:
        for shard in range(self._plan.shards):
            owns = self._plan.owner(shard) == self._rank
            yield self._reduce(shard) if owns else self._contribute(shard)
        if self._stale:
            yield self._discard_stale()

    async def _contribute(self, shard: int) -> None:
        """Put this rank's shard, then fetch the mean into its place."""
        await self._ready[shard].wait()
        owner = self._plan.owner(shard)
        stream = self._transfer.members.keys.contributions(owner)
        encode = self._contribution_frame(shard)
        await self._put(Arrival(self._step, shard, self._rank), stream, encode)
        mean = Arrival(self._step, shard, owner, is_mean=True)
        out = self._flat[self._plan.span(shard)]
        decode = partial(frame.decode_shard_into, out=out, dtype=self._wire.dtype)
        header, room = await self._transfer.fetch(mean, self._nbytes(shard), decode, self.phases)
        self._transfer.give_back([room])
        self._settle(shard, header)

    async def _reduce(self, shard: int) -> None:
        """Reduce a shard this rank owns, and put the mean."""
        await self._ready[shard].wait()
        async with self._reductions:
            header = await self._average(shard)
        if self._world_size > 1:
            mean = Arrival(self._step, shard, self._rank, is_mean=True)
            encode = partial(self._wire.mean, self._flat, self._plan.span(shard), header)
            await self._put(mean, self._transfer.members.keys.means, encode)
        self._settle(shard, header)

    async def _average(self, shard: int) -> frame.ShardHeader:
        """Replace the rank's own contribution by the weighted mean over all ranks.

        Frames are summed where they were received. All of them have been added when the sum is
        written, so that it may take the place of the rank's own contribution.
        """
        span = self._flat[self._plan.span(shard)]
        reducer = frame.ShardReducer(span.size, self._world_size, self._wire.dtype)
        await self._add_own(shard, reducer)
        headers = {self._rank: self._header(shard)}
        rooms: dict[int, Room | None] = {}
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        starts = [partial(self._contribution, shard, rank, reducer) for rank in others]
        # What comes with its notice is not fetched: there is nothing to do ahead.
        ahead = 1 if self._carried else _AHEAD
        async with aclosing(in_order(starts, ahead)) as contributions:
            async for rank, (header, freed), room in contributions:
                headers[rank], rooms[rank] = header, room
                self._transfer.give_back([rooms.pop(other, None) for other in freed])
        weight = sum(headers[rank].weight for rank in range(self._world_size))
        with self.phases.during(REDUCE, shard):
            scale = 1.0 / weight if weight else 0.0
            read = span.nbytes * (1 + len(rooms))
            await self._transfer.offload(read, reducer.finish, span, scale)
        self._transfer.give_back(rooms.values())
        flags = reduce(or_, (header.flags for header in headers.values()))
        metas = [headers[rank].meta for rank in range(self._world_size)]
        return frame.ShardHeader(flags, weight, _merged(metas, shard))

    async def _add_own(self, shard: int, reducer: frame.ShardReducer) -> None:
        """Add this rank's contribution: rounded where those of the others are."""
        if self._wire.dtype == LOSSLESS:
            reducer.add_own(self._rank, self._flat[self._plan.span(shard)])
            return
        encode = self._contribution_frame(shard)
        pieces: frame.Pieces = await self._transfer.offload(self._nbytes(shard), encode)
        reducer.add(self._rank, b"".join(pieces))

    def _contribution_frame(self, shard: int) -> Callable[[], frame.Pieces]:
        span, header = self._plan.span(shard), self._header(shard)
        return partial(self._wire.contribution, self._flat, span, header)

    async def _contribution(
        self, shard: int, rank: int, reducer: frame.ShardReducer
    ) -> tuple[int, tuple[frame.ShardHeader, list[int]], Room | None]:
        arrival, add = Arrival(self._step, shard, rank), partial(reducer.add, rank)
        found, room = await self._transfer.fetch(arrival, self._nbytes(shard), add, self.phases)
        return rank, found, room

    def _header(self, shard: int) -> frame.ShardHeader:
        return frame.ShardHeader(self._flags, self._weight, self._meta(shard))

    def _nbytes(self, shard: int) -> int:
        span = self._plan.span(shard)
        return self._wire.nbytes(span.stop - span.start)

    async def _put(self, arrival: Arrival, stream: str, encode: Callable[[], frame.Pieces]) -> None:
        # Whoever puts knows that all notices of the step before have been read.
        keep = 2 * self._notices(is_mean=arrival.is_mean) + _REPEATS
        await self._transfer.put(
            arrival,
            self._nbytes(arrival.shard),
            encode,
            self.phases,
            stream=stream,
            keep=keep,
            carried=self._carried,
        )

    def _notices(self, *, is_mean: bool) -> int:
        """Return the most notices of a step in the stream of the means, or of one owner."""
        if is_mean:
            return self._plan.shards
        return -(-self._plan.shards // len(self._plan.owners)) * (self._world_size - 1)

    def _travels_in_notices(self) -> bool:
        """Return whether the shards do: equal on all ranks, and no matter of what compresses."""
        members, nbytes = self._transfer.members, self._nbytes(0)
        notices = max(self._notices(is_mean=True), self._notices(is_mean=False))
        fits = nbytes <= members.carried_bytes and notices * nbytes <= _CARRIED_BYTES
        return fits and members.store.carries

    async def _discard_stale(self) -> None:
        """Free what the step before left, once any shard proves that every rank has applied it."""
        await self._settled.wait()
        await self._transfer.members.store.discard(self._stale)

    def frames(self) -> list[str]:
        """Return the keys of the shards that this rank owns, for the next step to discard."""
        if self._carried:
            return []  # their stream is trimmed
        arrivals = [
            Arrival(self._step, shard, rank, is_mean=rank == self._rank)
            for shard in self._plan.owned(self._rank)
            for rank in range(self._world_size)
        ]
        return [self._transfer.key(arrival) for arrival in arrivals]

    def _settle(self, shard: int, header: frame.ShardHeader) -> None:
        self._result.flags |= header.flags
        self._result.weight = header.weight
        self._result.metas[shard] = header.meta
        self._settled.set()


def _merged(metas: Sequence[frame.Meta], shard: int) -> frame.Meta:
    """Combine what the ranks said of one shard: present anywhere is present, metrics add up."""
    if len({len(meta.present) for meta in metas}) != 1:
        raise FrameError(f"the ranks do not agree on the tensors in shard {shard}")
    present = metas[0].present
    if any(meta.present != present for meta in metas):
        bits = [np.frombuffer(meta.present, np.uint8) for meta in metas]
        present = np.bitwise_or.reduce(bits).tobytes()
    return frame.Meta(present, added([meta.metrics for meta in metas]))
