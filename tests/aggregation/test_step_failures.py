"""Whatever goes wrong ends the step on every rank, in time and in a sentence."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from smlt.errors import (
    AbortedError,
    FrameError,
    RankMissingError,
    SmltError,
    StoreFullError,
    StoreLostError,
)
from smlt.io.frame import Meta
from smlt.io.memory_contents import forget
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.parameter_store import CARRIED
from tests.aggregation.worlds import Case, MeddledStore, world

LIMIT_S = 0.3


async def outcomes(case, ranks, plan):
    """Average on all of these ranks; return their errors."""

    async def one(rank):
        flat = case.gradients[0, rank.members.rank].copy()
        return await rank.average(0, plan, flat)

    return await asyncio.gather(*map(one, ranks), return_exceptions=True)


class Damage:
    """Turns a byte of matching frames, the first ``times`` times that each is fetched."""

    def __init__(self, suffix, times):
        self._suffix, self._times = suffix, times
        self.done = 0

    def __call__(self, key, frame):
        if not key.endswith(self._suffix) or self.done >= self._times:
            return frame
        self.done += 1
        hurt = bytearray(frame)
        hurt[-3] ^= 1
        return memoryview(hurt).toreadonly()


# Rank 2's contribution to shard 0, and the mean of shard 0.
@pytest.mark.parametrize("suffix", [":0:2", ":0:mean"])
def test_a_frame_damaged_on_its_way_is_fetched_again(suffix):
    case = Case(1, 3, 1000)
    damages = [Damage(suffix, 1) for _ in range(3)]

    async def run():
        def wrap(store, rank):
            return MeddledStore(store, on_got=damages[rank])

        async with world(3, wrap=wrap, carried_bytes=0) as ranks:
            await case.run(ranks, case.plan())

    asyncio.run(run())
    assert any(damage.done for damage in damages)


@pytest.mark.parametrize("suffix", [":0:2", ":0:mean"])
def test_a_damaged_frame_fails_the_step(suffix):
    case = Case(1, 3, 1000)
    damage = Damage(suffix, 2)

    async def run():
        def wrap(store, rank):
            return MeddledStore(store, on_got=damage)

        async with world(3, wrap=wrap, limit_s=LIMIT_S, carried_bytes=0) as ranks:
            return await outcomes(case, ranks, case.plan(1))

    errors = asyncio.run(run())
    [failure] = [error for error in errors if isinstance(error, FrameError)]
    assert suffix in str(failure)
    assert "checksum" in str(failure)


def test_a_frame_that_is_gone_is_the_stores_fault():
    case = Case(1, 2, 1000)

    async def run():
        def wrap(store, rank):
            return MeddledStore(store, on_got=lambda key, frame: None)

        async with world(2, wrap=wrap, limit_s=LIMIT_S, carried_bytes=0) as ranks:
            return await outcomes(case, ranks, case.plan(1))

    errors = asyncio.run(run())
    assert any(isinstance(error, StoreFullError) for error in errors)
    assert any("evict" in str(error) for error in errors)


class DamagedNotices:
    """Turns a byte of every frame that a notice carries, the first ``times`` times it is read."""

    def __init__(self, times):
        self._times = times
        self._seen = Counter()

    def __call__(self, notice):
        frame = notice.fields.get(CARRIED)
        if frame is None or self._seen[notice.id] >= self._times:
            return notice
        self._seen[notice.id] += 1
        hurt = bytearray(frame)
        hurt[-3] ^= 1
        return replace(notice, fields={**notice.fields, CARRIED: bytes(hurt)})


def test_a_frame_damaged_in_its_notice_is_read_again():
    case = Case(1, 3, 1000)

    async def run():
        def wrap(store, rank):
            return MeddledStore(store, on_read=DamagedNotices(1))

        async with world(3, wrap=wrap) as ranks:
            await case.run(ranks, case.plan())

    asyncio.run(run())


def test_a_frame_damaged_twice_in_its_notice_fails_the_step():
    case = Case(1, 3, 1000)

    async def run():
        def wrap(store, rank):
            return MeddledStore(store, on_read=DamagedNotices(2)) if rank == 0 else store

        async with world(3, wrap=wrap, limit_s=LIMIT_S) as ranks:
            return await outcomes(case, ranks, case.plan(1))

    errors = asyncio.run(run())
    [failure] = [error for error in errors if isinstance(error, FrameError)]
    assert ":0:1: " in str(failure)
    assert "checksum" in str(failure)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_rank_that_never_comes_is_missed_within_the_limit(missing):
    case = Case(1, 3, 1000)

    async def run():
        async with world(3, limit_s=LIMIT_S) as ranks:
            del ranks[missing]
            return await outcomes(case, ranks, case.plan(shard_bytes=1500))

    began = time.monotonic()
    errors = asyncio.run(run())
    assert time.monotonic() - began < 10 * LIMIT_S
    assert all(isinstance(error, RankMissingError) for error in errors)
    # Not "rank 0's mean is missing": its owner, who knows why, has the first word.
    assert all(f"rank {missing}" in str(error) for error in errors)
    assert all("step 0" in str(error) for error in errors)
    assert all("shard" in str(error) for error in errors)


@pytest.mark.parametrize("stuck", ["waiting", "putting", "computing"])
def test_an_abort_wakes_every_rank(stuck):
    case = Case(1, 3, 1000)

    async def run():
        begun = asyncio.Event()

        async def on_put(key):
            begun.set()
            if stuck == "putting":
                await asyncio.sleep(60)

        def wrap(store, rank):
            return MeddledStore(store, on_put=on_put)

        async with world(3, wrap=wrap) as ranks:
            present = ranks if stuck == "putting" else ranks[:2]
            ready = [] if stuck == "computing" else None
            running = [
                asyncio.create_task(
                    rank.average(0, case.plan(), case.gradients[0, i].copy(), ready=ready)
                )
                for i, rank in enumerate(present)
            ]
            if stuck == "computing":
                await asyncio.sleep(0)
            else:
                await begun.wait()
            keys, store = ranks[0].members.keys, ranks[0].members.store
            await store.announce(keys.control, {"reason": b"a user said so"}, guard=keys.marker)
            async with asyncio.timeout(5):
                return await asyncio.gather(*running, return_exceptions=True)

    errors = asyncio.run(run())
    assert all(isinstance(error, AbortedError) for error in errors), errors
    assert all("a user said so" in str(error) for error in errors)


def test_a_store_that_forgets_fails_the_step():
    case = Case(1, 2, 1000)

    async def run():
        name = "forgetful"
        async with world(2, lambda: MemoryParameterStore(name), limit_s=LIMIT_S) as ranks:
            await outcomes(case, ranks, case.plan())
            forget(name)
            return await outcomes(case, ranks, case.plan())

    errors = asyncio.run(run())
    assert all(isinstance(error, StoreLostError) for error in errors), errors


def test_ranks_that_do_not_agree_on_the_plan_are_refused():
    case = Case(1, 2, 1000)

    async def run():
        async with world(2, limit_s=LIMIT_S) as ranks:
            plans = [case.plan(1), Case(1, 2, 900).plan(1)]
            return await asyncio.gather(
                *(
                    rank.average(0, plan, np.zeros(plan.elements, np.float32))
                    for rank, plan in zip(ranks, plans, strict=True)
                ),
                return_exceptions=True,
            )

    errors = asyncio.run(run())
    [failure] = [error for error in errors if isinstance(error, FrameError)]
    assert "holds 900" in str(failure)
    assert ":0:0:1" in str(failure)


def test_ranks_that_do_not_agree_on_the_tensors_are_refused():
    case = Case(1, 2, 100)

    async def run():
        async with world(2, limit_s=LIMIT_S) as ranks:
            return await asyncio.gather(
                *(
                    rank.average(0, case.plan(1), np.zeros(100, np.float32), meta=lambda _, b=b: b)
                    for rank, b in zip(ranks, (Meta(b"\1"), Meta(b"\1\1")), strict=True)
                ),
                return_exceptions=True,
            )

    errors = asyncio.run(run())
    [failure] = [error for error in errors if isinstance(error, FrameError)]
    assert "shard 0" in str(failure)
    assert all(isinstance(error, SmltError) for error in errors)


def test_nothing_writes_to_the_buffer_once_the_step_has_failed():
    """A reduction that runs in a thread is waited for, since cancelling cannot stop it."""
    case = Case(1, 2, 200_000)
    entered, may_end = threading.Event(), threading.Event()
    ended = []

    def slow(function, *args):
        entered.set()
        may_end.wait(10)
        result = function(*args)
        ended.append(function)
        return result

    async def run():
        async with world(2) as ranks:
            members = ranks[0].members
            slowed = partial(members.offload, slow)
            object.__setattr__(members, "offload", slowed)
            flats = case.gradients[0].copy()
            plan = case.plan(1, 4 * case.elements)
            running = [
                asyncio.create_task(rank.average(0, plan, flat))
                for rank, flat in zip(ranks, flats, strict=True)
            ]
            await asyncio.to_thread(entered.wait, 10)
            ranks[0].notices.fail(AbortedError("now"))
            await asyncio.sleep(0.05)
            assert not running[0].done()
            may_end.set()
            with pytest.raises(AbortedError):
                await running[0]
            assert ended
            running[1].cancel()
            await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(run())
