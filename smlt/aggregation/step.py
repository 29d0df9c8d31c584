"""One all-reduce of a flat buffer through the parameter store (protocol, A step).

Each rank puts the shards it does not own; each owner reduces its shards in the fixed order of
ranks while others still arrive, and puts the mean; every rank fetches the means into its buffer.
Uploads, reductions and downloads overlap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core import shard_reduce
from smlt.aggregation.notices import Arrival, Notices
from smlt.aggregation.shard_plan import ShardPlan
from smlt.aggregation.window import in_order
from smlt.errors import FrameError, StoreFullError
from smlt.io import frame
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import ParameterStore

# At most this many frames of one rank are under way in each direction.
_TRANSFERS = 4
# Shards that an owner reduces at once, and contributions to one of them fetched ahead: together
# they bound the memory of an owner. The store buffers the rest.
_REDUCTIONS = 2
_AHEAD = 2
# Below this size a hop to another thread costs more than the work.
_OFFLOAD_BYTES = 256 << 10

Shard = NDArray[np.float32]
Offload = Callable[..., Awaitable[Any]]
"""Run a blocking function elsewhere: ``asyncio.to_thread``, or at once under a simulator."""


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
    """How long one shard may keep a rank waiting."""
    offload: Offload = asyncio.to_thread
    clock: Callable[[], float] = time.perf_counter


@dataclass(slots=True)
class StepResult:
    """What all ranks hold alike after a step; the means themselves are in the buffer."""

    flags: int
    """OR over all ranks and shards."""
    weight: float
    """Total weight of the contributions."""
    metas: list[frame.Meta]
    """Merged, one for each shard."""
    spans: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, summed over shards that overlap in time."""


class AllReduce:
    """The all-reduce of one step. Call ``ready`` as shards become final, and await ``run``.

    The buffer belongs to the step until ``run`` returns; from then on it holds the means.
    """

    def __init__(
        self,
        members: Membership,
        notices: Notices,
        plan: ShardPlan,
        flat: Shard,
        *,
        step: int,
        weight: float,
        flags: int,
        meta: Callable[[int], frame.Meta],
        stale: Sequence[str] = (),
    ) -> None:
        self._members = members
        self._notices = notices
        self._plan = plan
        self._flat = flat
        self._step = step
        self._weight = weight
        self._flags = flags
        self._meta = meta
        self._stale = list(stale)
        self._ready = [asyncio.Event() for _ in range(plan.shards)]
        self._settled = asyncio.Event()
        self._uploads = asyncio.Semaphore(_TRANSFERS)
        self._downloads = asyncio.Semaphore(_TRANSFERS)
        self._reductions = asyncio.Semaphore(_REDUCTIONS)
        self._result = StepResult(0, 0.0, [frame.Meta()] * plan.shards)

    def ready(self, shard: int) -> None:
        """Say that the shard's gradient is final. On the event loop's thread."""
        self._ready[shard].set()

    async def run(self) -> StepResult:
        """Take part in every shard; return when all means are in the buffer.

        Raises:
            RankMissingError, StoreError, FrameError: why the generation must be aborted.
            AbortedError: it has been.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for shard in range(self._plan.shards):
                    owns = self._plan.owner(shard) == self._members.rank
                    group.create_task(self._reduce(shard) if owns else self._contribute(shard))
                group.create_task(self._discard_stale())
        except ExceptionGroup as errors:
            # One cause ends the step; the others are its echoes.
            raise errors.exceptions[0] from None
        self._notices.forget(self._step)
        return self._result

    async def _contribute(self, shard: int) -> None:
        """Put this rank's shard, then fetch the mean into its place."""
        span = self._flat[self._plan.span(shard)]
        await self._ready[shard].wait()
        header = frame.ShardHeader(self._flags, self._weight, self._meta(shard))
        stream = self._members.keys.contributions(self._plan.owner(shard))
        await self._put(Arrival(self._step, shard, self._members.rank), stream, span, header)
        self._settle(shard, await self._fetch(Arrival(self._step, shard, None), span))

    async def _reduce(self, shard: int) -> None:
        """Reduce a shard this rank owns, and put the mean."""
        members = self._members
        span = self._flat[self._plan.span(shard)]
        await self._ready[shard].wait()
        async with self._reductions:
            header = await self._sum(shard, span)
        if members.world_size > 1:
            await self._put(Arrival(self._step, shard, None), members.keys.means, span, header)
        self._settle(shard, header)

    async def _sum(self, shard: int, span: Shard) -> frame.ShardHeader:
        """Replace the rank's own contribution by the weighted mean over all ranks."""
        members = self._members
        reducer = shard_reduce.StreamReducer(span.size, members.world_size)
        headers: list[frame.ShardHeader] = []
        starts = [
            partial(self._contribution, shard, rank, span) for rank in range(members.world_size)
        ]
        async with aclosing(in_order(starts, _AHEAD)) as contributions:
            async for values, header in contributions:
                with self._span("reduce"):
                    await self._offload(values.nbytes, reducer.add, len(headers), values)
                headers.append(header)
        weight = sum(header.weight for header in headers)
        with self._span("reduce"):
            scale = 1.0 / weight if weight else 0.0
            await self._offload(span.nbytes, reducer.finish, span, scale)
        flags = 0
        for header in headers:
            flags |= header.flags
        return frame.ShardHeader(flags, weight, _merged([header.meta for header in headers]))

    async def _contribution(
        self, shard: int, rank: int, own: Shard
    ) -> tuple[Shard, frame.ShardHeader]:
        if rank == self._members.rank:
            return own, frame.ShardHeader(self._flags, self._weight, self._meta(shard))
        values = np.empty(own.size, np.float32)
        return values, await self._fetch(Arrival(self._step, shard, rank), values)

    async def _put(
        self, arrival: Arrival, stream: str, span: Shard, header: frame.ShardHeader
    ) -> None:
        members = self._members
        async with self._uploads:
            with self._span("upload"):
                await members.store.put(
                    self._key(arrival),
                    await self._offload(span.nbytes, frame.encode_shard, span, header),
                    stream=stream,
                    fields=arrival.fields,
                    guard=members.keys.marker,
                    ttl_s=members.ttl_s,
                    # Readers lag by a step at the most; twice that leaves room for repeats.
                    maxlen=4 * self._plan.shards * members.world_size,
                )

    async def _fetch(self, arrival: Arrival, out: Shard) -> frame.ShardHeader:
        """Wait for a shard and bring it into ``out``; a damaged frame is asked for once more."""
        with self._span("wait"):
            await self._notices.wait(arrival, self._members.limit_s)
        async with self._downloads:
            with self._span("download"):
                try:
                    return await self._get(arrival, out)
                except FrameError:
                    return await self._get(arrival, out)

    async def _get(self, arrival: Arrival, out: Shard) -> frame.ShardHeader:
        key = self._key(arrival)
        data = await self._members.store.get(key)
        if data is None:
            raise StoreFullError(
                f"{key} was announced and is gone: the parameter store evicts or expires frames "
                "(it needs maxmemory-policy noeviction and room for two steps)"
            )
        try:
            header: frame.ShardHeader = await self._offload(
                out.nbytes, frame.decode_shard_into, data, out
            )
        except FrameError as error:
            raise FrameError(f"{key}: {error}") from error
        return header

    async def _discard_stale(self) -> None:
        """Free what the step before left, once any shard proves that every rank has applied it."""
        await self._settled.wait()
        if self._stale:
            await self._members.store.discard(self._stale)

    def frames(self) -> list[str]:
        """Return the keys of this rank's shards, for the next step to discard."""
        ranks: list[int | None] = [None, *range(self._members.world_size)]
        owned = self._plan.owned(self._members.rank)
        return [self._key(Arrival(self._step, shard, rank)) for shard in owned for rank in ranks]

    def _settle(self, shard: int, header: frame.ShardHeader) -> None:
        self._result.flags |= header.flags
        self._result.weight = header.weight
        self._result.metas[shard] = header.meta
        self._settled.set()

    def _key(self, arrival: Arrival) -> str:
        keys = self._members.keys
        if arrival.rank is None:
            return keys.mean(arrival.step, arrival.shard)
        return keys.contribution(arrival.step, arrival.shard, arrival.rank)

    async def _offload(self, size: int, function: Callable[..., Any], *args: Any) -> Any:
        if size < _OFFLOAD_BYTES:
            return function(*args)
        return await self._members.offload(function, *args)

    def _span(self, phase: str) -> _Span:
        return _Span(self._result.spans, phase, self._members.clock)


def _merged(metas: Sequence[frame.Meta]) -> frame.Meta:
    """Combine what the ranks said of one shard: present anywhere is present, metrics add up."""
    bits = [np.frombuffer(meta.present, np.uint8) for meta in metas]
    metrics: dict[str, tuple[float, float]] = {}
    for meta in metas:
        for name, (total, weight) in meta.metrics.items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + total, before[1] + weight)
    return frame.Meta(np.bitwise_or.reduce(bits).tobytes(), metrics)


class _Span:
    """Adds the time of a ``with`` block to a phase."""

    def __init__(self, spans: dict[str, float], phase: str, clock: Callable[[], float]) -> None:
        self._spans, self._phase, self._clock = spans, phase, clock

    def __enter__(self) -> None:
        self._started = self._clock()

    def __exit__(self, *_: object) -> None:
        elapsed = self._clock() - self._started
        self._spans[self._phase] = self._spans.get(self._phase, 0.0) + elapsed
