"""Parcels from one rank to another: who waits for whom, and what leaving changes."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from smlt.aggregation.exchange import Exchange
from smlt.aggregation.transfer import shard_threads
from smlt.errors import RankMissingError
from smlt.io.keys import GenerationKeys
from tests.aggregation.worlds import memory_store

SENT = np.arange(100, dtype=np.uint8)


@contextlib.asynccontextmanager
async def two_ranks(limit_s):
    keys = GenerationKeys("job", 1)
    open_store = memory_store()
    async with open_store() as store, contextlib.AsyncExitStack() as stack:
        await store.mark(keys.marker, ttl_s=60)
        threads = stack.enter_context(contextlib.closing(shard_threads()))
        ranks = [
            Exchange(store, keys, rank, 2, ttl_s=60, limit_s=limit_s, offload=threads.run)
            for rank in range(2)
        ]
        reading = [asyncio.create_task(rank.run()) for rank in ranks]
        try:
            yield ranks
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            for rank in ranks:
                await rank.close()


def test_a_sender_does_not_wait_for_ever_for_one_that_has_left():
    async def run():
        async with two_ranks(limit_s=0.2) as (sender, _):
            with pytest.raises(RankMissingError, match=r"rank 1 has not received .* within 0\.2 s"):
                await asyncio.wait_for(sender.send("a", SENT, to=1), 20)

    asyncio.run(run())


def test_a_receiver_that_leaves_at_once_has_told_the_sender():
    async def run():
        async with two_ranks(limit_s=20) as (sender, receiver):
            sending = asyncio.create_task(sender.send("a", SENT, to=1))
            out = np.zeros_like(SENT)
            assert await receiver.fetch([("a", 0)], out, what="send") == 0
            await receiver.close()
            await sending
            assert np.array_equal(out, SENT)

    asyncio.run(run())
