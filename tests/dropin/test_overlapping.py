"""Overlapping reductions find out how their shards do best, alike on all ranks."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from smlt.aggregation.group import Group
from smlt.aggregation.overlapping import OverlappingReductions
from smlt.aggregation.session import Session
from smlt.aggregation.session_settings import SessionLimits, SessionSpec
from smlt.aggregation.wire import Wire
from smlt.io.stores import open_parameter_store
from smlt.io.together import together

RANKS = 3
SIZES = (150_000, 100_000, 150_000, 1000)
LIMITS = SessionLimits(step_s=20)


def given(rank, step, index):
    return np.random.default_rng([rank, step, index]).standard_normal(SIZES[index], np.float32)


async def run(job, act, **settings):
    """Return by rank what ``act(reductions, rank)`` returned."""
    spec = SessionSpec(world_size=RANKS, shard_bytes=4 << 20, lanes=4, **settings)

    async def live(rank):
        store = open_parameter_store(f"memory://{job}", time_limit_s=20)
        async with store, Session(store, job, rank, spec, LIMITS) as session:
            await session.formed()
            async with Group(session) as group:
                return await act(OverlappingReductions(group), rank)

    return await asyncio.gather(*map(live, range(RANKS)))


async def take(reductions, rank, step):
    """One step of a model with buckets of these sizes; all begin at once."""
    flats = [given(rank, step, index) for index in range(len(SIZES))]
    await together(
        [
            reductions.reduce(flat, weight=1.0, what=f"sum of {flat.size}", wire=Wire())()
            for flat in flats
        ]
    )
    return flats


def test_every_size_finds_its_way_and_no_mean_is_wrong(job):
    async def act(reductions, rank):
        rng, settled = random.Random(rank), []
        for step in range(12):
            await asyncio.sleep(rng.uniform(0, 0.005))
            flats = await take(reductions, rank, step)
            for index in (1, 2, 3):
                every = [given(r, step, index).astype(np.float64) for r in range(RANKS)]
                np.testing.assert_allclose(flats[index], np.mean(every, axis=0), atol=1e-6)
            settled.append(reductions.shards)
        return settled

    results = asyncio.run(run(job, act, tries_plans=True))
    assert results[1:] == results[:-1], "ranks differ"
    assert not results[0][0]
    assert set(results[0][-1]) == {f"sum of {size}" for size in SIZES}
    assert results[0][-1]["sum of 1000"] == "1 shard of 0.00381 MB in fp32"
    assert "a step in" in results[0][-1]["sum of 150000"]


@pytest.mark.parametrize("settings", [{"tries_plans": True}, {}])
def test_those_that_are_not_on_trial_overlap(job, settings):
    """The first of a size, and all of them where sizes were given: not one after the other.

    The third of the four is the second of its size.
    """
    begun, most = 0, 0

    async def act(reductions, rank):
        nonlocal begun, most
        if rank:
            await take(reductions, rank, 0)
            return

        async def counted(operation):
            nonlocal begun, most
            begun += 1
            most = max(most, begun)
            await operation()
            begun -= 1

        real = reductions._group.reduce_flat

        def counting(*arguments, **options):
            operation = real(*arguments, **options)
            return lambda: counted(operation)

        reductions._group.reduce_flat = counting
        await take(reductions, 0, 0)

    asyncio.run(run(job, act, **settings))
    assert most == (3 if settings else 4)


@pytest.mark.slow
def test_sizes_without_a_pattern_try_nothing(job):
    async def act(reductions, rank):
        for size in range(100_000, 100_120):
            await reductions.reduce(
                np.ones(size, np.float32), weight=1.0, what=f"sum of {size}", wire=Wire()
            )()
        return reductions.shards, len(reductions._seen)

    for shards, known in asyncio.run(run(job, act, tries_plans=True)):
        assert shards == {}
        assert known <= 100
