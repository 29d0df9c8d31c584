"""Averages against a float64 oracle, and the same bits however they come about."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt.io.frame import Meta
from smlt.io.memory_parameters import MemoryParameterStore
from tests.aggregation.worlds import Case, MeddledStore, eventually, memory_store, world


def average(case, plan, open_store=None, *, seed=None, carried=True):
    """Return what the ranks hold after each step; with a seed, arrivals come out of order."""
    carried_bytes = 128 << 10 if carried else 0
    shuffle = None if seed is None else np.random.default_rng(seed)

    def wrap(store, rank):
        rng = random.Random(f"{seed} {rank}")
        if seed is None:
            return store
        return MeddledStore(store, delay=lambda: rng.choice((0, 0, 0.0005, 0.002)))

    async def run():
        async with world(
            case.world_size, open_store, wrap=wrap, carried_bytes=carried_bytes
        ) as ranks:
            return await case.run(ranks, plan, shuffle=shuffle)

    return asyncio.run(run())


sizes = st.sampled_from([0, 1, 2, 3, 7, 15, 16, 17]) | st.integers(0, 3000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    world_size=st.integers(1, 16),
    elements=sizes,
    aggregators=st.integers(1, 16),
    shard_bytes=st.sampled_from([64, 100, 1024, 4096]),
    carried=st.booleans(),
)
def test_every_rank_holds_the_weighted_mean(
    seed, world_size, elements, aggregators, shard_bytes, carried
):
    shard_bytes = max(shard_bytes, elements // 10)
    case = Case(seed, world_size, elements, steps=2)
    plan = case.plan(min(aggregators, world_size), shard_bytes)
    average(case, plan, seed=seed, carried=carried)


@pytest.mark.parametrize("world_size", range(1, 17))
def test_any_number_of_ranks_shares_large_shards(world_size):
    case = Case(world_size, world_size, 70_001)
    average(case, case.plan(shard_bytes=64 << 10))


@pytest.mark.parametrize(("world_size", "elements"), [(2, 0), (4, 1), (3, 1000), (4, 300_007)])
def test_ranks_share_a_real_server(open_valkey, world_size, elements):
    case = Case(elements, world_size, elements, steps=3)
    average(case, case.plan(shard_bytes=max(64, elements // 2)), open_valkey, seed=1)


@pytest.mark.parametrize(("world_size", "elements"), [(3, 5000), (4, 150_000), (13, 900)])
def test_bits_do_not_depend_on_how_shards_travel(open_valkey, world_size, elements):
    case = Case(7, world_size, elements, steps=2)
    [reference] = {tuple(average(case, case.plan(1, 4 * elements)))}
    for aggregators in (2, world_size):
        for shard_bytes in (elements, 4 * elements // 30):
            plan = case.plan(aggregators, shard_bytes)
            for carried in (False, True):
                assert tuple(average(case, plan, seed=shard_bytes, carried=carried)) == reference
    if world_size <= 4:
        assert tuple(average(case, case.plan(None, elements), open_valkey)) == reference


def test_bits_do_not_depend_on_how_many_threads_work_on_shards():
    case = Case(11, 3, 200_000)
    plan = case.plan(2, 400_000)

    async def run(threads):
        async with world(3, threads=threads) as ranks:
            return await case.run(ranks, plan, shuffle=np.random.default_rng(threads))

    [one, *others] = [asyncio.run(run(threads)) for threads in (1, 2, 8)]
    assert others == [one, one]


def test_a_rank_of_weight_zero_counts_for_nothing_and_gets_the_mean():
    case = Case(3, 3, 100)
    case.weights[0] = [2.0, 0.0, 6.0]
    case.gradients[0, 1] = 0.0
    average(case, case.plan())


def test_total_weight_zero_gives_zeros():
    case = Case(3, 2, 100)
    case.weights[:] = 0.0
    [mean] = average(case, case.plan())
    assert not np.frombuffer(mean, np.float32).any()


def test_numbers_that_are_none_spread_only_where_they_are():
    case = Case(3, 2, 64)
    case.weights[:] = 1.0
    case.gradients[0, 1, 5] = np.nan
    case.gradients[0, 0, 6] = np.inf
    case.check = lambda *_: None
    [mean] = average(case, case.plan())
    mean = np.frombuffer(mean, np.float32)
    assert np.isnan(mean[5])
    assert np.isposinf(mean[6])
    assert np.isfinite(np.delete(mean, [5, 6])).all()


def test_the_store_holds_about_two_steps():
    case = Case(11, 4, 20_000, steps=8)
    live = {}

    async def run():
        stores = []

        def wrap(store, rank):
            stores.append(MeddledStore(store, live=live))
            return stores[-1]

        async with world(4, wrap=wrap, carried_bytes=0) as ranks:
            await case.run(ranks, case.plan(shard_bytes=8000))
        return max(store.peak for store in stores)

    # A step's frames: three contributions to each shard, and its mean.
    one_step = 4 * case.elements * 4
    assert asyncio.run(run()) <= 2.2 * one_step
    assert sum(live.values()) <= 1.1 * one_step


@pytest.mark.parametrize("world_size", [4, 16])
def test_an_owner_has_room_for_few_frames(world_size):
    """And keeps it, so that no step after the first one touches fresh memory."""
    case = Case(4, world_size, 40_000, steps=3)
    stores = []

    async def run():
        def wrap(store, rank):
            stores.append(MeddledStore(store))
            return stores[-1]

        async with world(world_size, wrap=wrap, carried_bytes=0) as ranks:
            await case.run(ranks, case.plan(1, shard_bytes=8000))

    asyncio.run(run())
    reductions_at_once = 2
    assert len(stores[0].rooms) <= reductions_at_once * (np.log2(world_size) + 8)


def test_discarded_frames_are_gone_from_the_server(valkey, open_valkey):
    case = Case(11, 3, 9000, steps=6)

    def frames():
        with valkey.client() as admin:
            return sum(admin.type(key) == b"string" for key in admin.scan_iter("smlt:*"))

    before = frames()
    plan = case.plan(shard_bytes=4000)
    average(case, plan, open_valkey, carried=False)
    # Two contributions and the mean of each shard, of the last step only; and the marker.
    assert frames() - before <= 3 * plan.shards + 1


def test_frames_in_notices_leave_the_server_with_them(valkey, open_valkey):
    case = Case(11, 3, 9000, steps=30)
    with valkey.client() as admin:
        admin.flushall()
        average(case, case.plan(1, shard_bytes=8000), open_valkey)
        values = [key for key in admin.scan_iter("smlt:*") if admin.type(key) == b"string"]
        assert [key.rpartition(b":")[2] for key in values] == [b"marker"]
        streams = [key for key in admin.scan_iter("smlt:*") if admin.type(key) == b"stream"]
        # One owner's contributions and the means, five shards each: two steps, and some repeats.
        assert sorted(admin.xlen(key) for key in streams) == [2 * 5 + 8, 2 * 10 + 8]


def test_metrics_alone_are_summed_over_ranks():
    async def run():
        async with world(5) as ranks:
            return await asyncio.gather(
                *(
                    rank.collective.sum_metrics(
                        0,
                        {"hits": (0.1 * number, 10.0), f"only{number}": (1.0, 2.0)},
                        flags=1 << number,
                    )
                    for number, rank in enumerate(ranks)
                )
            )

    results = asyncio.run(run())
    for result in results:
        assert result.flags == 0b11111
        [meta] = result.metas
        assert meta.metrics == results[0].metas[0].metrics
        assert meta.metrics["hits"] == pytest.approx((0.1 * (0 + 1 + 2 + 3 + 4), 50.0))
        assert {f"only{number}" for number in range(5)} < meta.metrics.keys()


def test_steps_and_metrics_follow_one_another():
    case = Case(2, 3, 500, steps=2)
    plan = case.plan(shard_bytes=512)

    async def life(rank):
        for step in range(10):
            if step % 3 == 2:
                await rank.collective.sum_metrics(step, {"n": (1.0, 1.0)}, flags=0)
                continue
            flat = case.gradients[0, rank.members.rank].copy()
            await rank.average(step, plan, flat, weight=case.weights[0, rank.members.rank])
            mean, bound = case.mean(0)
            assert np.all(np.abs(flat - mean) <= bound)

    async def run():
        async with world(3) as ranks:
            await asyncio.gather(*map(life, ranks))

    asyncio.run(run())


def test_shards_go_out_before_the_last_one_is_ready():
    """The overlap with backward: a mean is in place while another shard is not yet computed."""
    case = Case(5, 2, 64)
    plan = case.plan(shard_bytes=128)

    async def run():
        live = {}
        async with world(2, wrap=lambda store, _: MeddledStore(store, live=live)) as ranks:
            reductions = [
                rank.collective.begin(
                    0, plan, case.gradients[0, number], weight=1.0, flags=0, meta=lambda _: Meta()
                )
                for number, rank in enumerate(ranks)
            ]
            running = [asyncio.create_task(reduction.run()) for reduction in reductions]
            for reduction in reductions:
                reduction.ready(0)
            await eventually(lambda: any(key.endswith(":0:mean") for key in live))
            assert not any(task.done() for task in running)
            for reduction in reductions:
                reduction.ready(1)
            await asyncio.gather(*running)

    asyncio.run(run())


def test_two_jobs_share_a_store():
    open_store = memory_store()
    assert isinstance(open_store(), MemoryParameterStore)
    cases = [Case(seed, 3, 400) for seed in (1, 2)]

    async def run():
        async with world(3, open_store) as one, world(3, open_store) as other:
            await asyncio.gather(
                *(
                    case.run(ranks, case.plan())
                    for case, ranks in zip(cases, (one, other), strict=True)
                )
            )

    asyncio.run(run())
