"""Some ranks in one process, with stores between them that delay, damage, lose and count."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

import numpy as np

from smlt.aggregation.collective import Collective
from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.aggregation.notices import Notices
from smlt.aggregation.shard_plan import plan_shards
from smlt.aggregation.transfer import Membership
from smlt.errors import AbortedError
from smlt.io.frame import Meta
from smlt.io.keys import GenerationKeys
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.threads import Threads

_numbers = itertools.count()
FOREVER_S = 600.0


def memory_store():
    """Return a function that opens one more client of a fresh store."""
    name = f"world{next(_numbers)}"
    return lambda: MemoryParameterStore(name)


async def eventually(condition, limit_s=10.0):
    """Return once the condition holds; fail after the limit."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - whatever makes it hold sets no event
            await asyncio.sleep(0.001)


class MeddledStore:
    """A store whose frames can be hurt on their way; all else passes.

    ``live`` maps the key of every frame that has been put and not discarded to its bytes.
    """

    def __init__(
        self, inner, *, delay=None, on_put=None, on_got=None, on_read=None, live=None
    ) -> None:
        self.inner = inner
        self._delay = delay
        self._on_put = on_put
        self._on_got = on_got
        self._on_read = on_read
        self._live = {} if live is None else live
        self.peak = 0
        self.rooms = set()
        """Where frames have been received, by address."""

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def _wait(self):
        if self._delay is not None:
            await asyncio.sleep(self._delay())

    async def put(self, key, frame, **options):
        await self._wait()
        if self._on_put is not None:
            await self._on_put(key)
        await self.inner.put(key, frame, **options)
        self._live[key] = sum(memoryview(piece).nbytes for piece in frame)
        self.peak = max(self.peak, sum(self._live.values()))

    async def get(self, key, **options):
        await self._wait()
        self.rooms.add(np.frombuffer(options["into"], np.uint8).ctypes.data)
        frame = await self.inner.get(key, **options)
        return frame if self._on_got is None else self._on_got(key, frame)

    async def read(self, after, **options):
        notices = await self.inner.read(after, **options)
        return notices if self._on_read is None else [self._on_read(n) for n in notices]

    async def discard(self, keys):
        await self.inner.discard(keys)
        for key in keys:
            self._live.pop(key, None)


@dataclass
class Rank:
    """One rank, its notices being read."""

    members: Membership
    notices: Notices
    collective: Collective = field(init=False)

    def __post_init__(self):
        self.collective = Collective(self.members, self.notices)

    async def average(
        self, step, plan, flat, *, weight=1.0, flags=0, meta=None, ready=None, wire=None
    ):
        """All-reduce in place; the shards become ready in the order given."""
        reduction = self.collective.begin(
            step,
            plan,
            flat,
            weight=weight,
            flags=flags,
            meta=meta or (lambda _: Meta()),
            wire=wire,
        )
        running = asyncio.create_task(reduction.run())
        try:
            for shard in range(plan.shards) if ready is None else ready:
                reduction.ready(shard)
                await asyncio.sleep(0)
            return await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def world(
    size,
    open_store=None,
    *,
    wrap=lambda store, rank: store,
    limit_s=20.0,
    carried_bytes=128 << 10,
    threads=4,
):
    """Yield the ranks of a generation; an abort on the control stream fails their waits.

    Shards of more than ``carried_bytes`` travel under keys, smaller ones in their notices. Each
    rank works on large ones in so many ``threads``.
    """
    open_store = open_store or memory_store()
    keys = GenerationKeys(f"job{next(_numbers)}", 1)
    async with contextlib.AsyncExitStack() as stack:
        ranks = []
        for rank in range(size):
            store = wrap(await stack.enter_async_context(open_store()), rank)
            pool = stack.enter_context(contextlib.closing(Threads(threads, "smlt-shards")))
            ranks.append(_rank(store, keys, rank, size, limit_s, carried_bytes, pool.run))
        await ranks[0].members.store.mark(keys.marker, ttl_s=FOREVER_S)
        reading = [asyncio.create_task(rank.notices.run()) for rank in ranks]
        try:
            yield ranks
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


def _rank(store, keys, rank, size, limit_s, carried_bytes, offload):
    def on_control(fields):
        notices.fail(AbortedError(fields["reason"].decode()))

    notices = Notices(store, keys, rank, on_control)
    members = Membership(
        store=store,
        keys=keys,
        rank=rank,
        world_size=size,
        ttl_s=FOREVER_S,
        limit_s=limit_s,
        carried_bytes=carried_bytes,
        offload=offload,
    )
    return Rank(members, notices)


@dataclass
class Case:
    """Random contributions of some ranks to some steps, and what becomes of them in float64."""

    seed: int
    world_size: int
    elements: int
    steps: int = 1

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        shape = (self.steps, self.world_size, self.elements)
        scale = np.exp(rng.normal(size=(*shape[:2], 1)))
        self.gradients = (rng.normal(size=shape) * scale).astype(np.float32)
        self.weights = rng.integers(0, 5, size=shape[:2]).astype(float)
        self.flags = (1 << rng.integers(0, 20, size=shape[:2])).tolist()
        cuts = np.sort(rng.integers(0, self.elements + 1, size=rng.integers(0, 6)))
        ends = [0, *cuts.tolist(), self.elements]
        self.shapes = {f"tensor{i}": (b - a,) for i, (a, b) in enumerate(itertools.pairwise(ends))}
        self.absent = [
            [frozenset(name for name in self.shapes if rng.random() < 0.5) for _ in range(size)]
            for size in [self.world_size] * self.steps
        ]
        self.metrics = [
            [{name: (rng.normal(), 1.0 + rank) for name in ("loss", f"of{rank % 2}")}
             for rank in range(self.world_size)]
            for _ in range(self.steps)
        ]  # fmt: skip

    def plan(self, aggregators=None, shard_bytes=1 << 12):
        return plan_shards(
            self.elements,
            world_size=self.world_size,
            shard_bytes=shard_bytes,
            aggregators=aggregators or self.world_size,
        )

    def mean(self, step):
        """Return the weighted mean, and how far float32 may be from it."""
        total = self.weights[step].sum()
        scale = 1.0 / total if total else 0.0
        gradients = self.gradients[step].astype(np.float64)
        bound = np.finfo(np.float32).eps * (3 + np.log2(self.world_size))
        return gradients.sum(0) * scale, np.abs(gradients).sum(0) * scale * bound

    async def run(self, ranks, plan, *, shuffle=None):
        """Take all steps on all ranks; return the means' bytes, alike on all ranks, by step.

        ``shuffle`` is a generator that decides the order in which shards become ready.
        """
        outcomes = await asyncio.gather(*(self._steps(rank, plan, shuffle) for rank in ranks))
        for outcome in outcomes[1:]:
            assert outcome == outcomes[0], "the ranks do not hold the same"
        return outcomes[0]

    async def _steps(self, rank, plan, shuffle):
        number = rank.members.rank
        buffer = GradientBuffer(self.shapes)
        buffer.partition(plan)
        means = []
        for step in range(self.steps):
            buffer.flat[:] = self.gradients[step, number]

            def meta(shard, step=step):
                last = shard == plan.shards - 1
                return Meta(
                    buffer.presence(shard, self.absent[step][number]),
                    self.metrics[step][number] if last else {},
                )

            order = range(plan.shards) if shuffle is None else shuffle.permutation(plan.shards)
            result = await rank.average(
                step,
                plan,
                buffer.flat,
                weight=self.weights[step, number],
                flags=self.flags[step][number],
                meta=meta,
                ready=[int(shard) for shard in order],
            )
            self.check(step, buffer, result)
            means.append(buffer.flat.tobytes())
        return means

    def check(self, step, buffer, result):
        mean, bound = self.mean(step)
        assert np.all(np.abs(buffer.flat - mean) <= bound)
        assert result.weight == self.weights[step].sum()
        assert result.flags == np.bitwise_or.reduce(self.flags[step])
        present = buffer.present([meta.present for meta in result.metas])
        overlapping = {name for name, (size,) in self.shapes.items() if size}
        everywhere_absent = frozenset.intersection(*self.absent[step])
        assert present == overlapping - everywhere_absent
        assert self._same_metrics(step, result.metas[-1].metrics)

    def _same_metrics(self, step, metrics):
        expected = {}
        for own in self.metrics[step]:
            for name, pair in own.items():
                expected[name] = np.add(expected.get(name, (0.0, 0.0)), pair)
        return metrics.keys() == expected.keys() and all(
            np.allclose(metrics[name], expected[name], rtol=1e-12, atol=1e-12) for name in metrics
        )
