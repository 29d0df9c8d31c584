"""What the store holds of a session may be damaged: the session is lost then, its name is not."""

import asyncio

import numpy as np
import pytest

from smlt.aggregation.aggregator import Aggregator
from smlt.errors import AbortedError
from smlt.io.keys import SessionKeys
from smlt.io.stores import open_parameter_store

GARBAGE = [b"", b"\xc1", b"\x81\xa5spice\x00", b"\x93\x01\x02\x03", b"\xff" * 40]


def damage(url, write):
    async def scenario():
        async with open_parameter_store(url, time_limit_s=10) as store:
            await write(store)

    asyncio.run(scenario())


def mean(aggregator, rank):
    gradient = np.full(100, float(rank), np.float32)
    aggregator.allreduce(gradient)
    return gradient[0]


@pytest.mark.parametrize("data", GARBAGE)
@pytest.mark.parametrize("ended", [False, True])
def test_ranks_meet_behind_a_session_whose_record_is_damaged(ranks, job, valkey, data, ended):
    keys = SessionKeys(job)

    async def write(store):
        await store.mark(keys.marker, ttl_s=60)
        await store.renew(keys.founding(1), data, ttl_s=60)
        if ended:
            await store.renew(keys.end(1), data, ttl_s=60)

    damage(valkey.url, write)
    assert ranks.values(2, mean, valkey.url) == [0.5, 0.5]


@pytest.mark.parametrize("data", GARBAGE)
def test_a_session_that_was_ended_by_a_damaged_record_is_over(job, valkey, data):
    keys = SessionKeys(job)

    async def write(store):
        await store.renew(keys.end(1), data, ttl_s=60)

    def act():
        with Aggregator(valkey.url, job=job, rank=0, world_size=1, lease_s=1) as aggregator:
            damage(valkey.url, write)
            while True:
                mean(aggregator, 0)

    with pytest.raises(AbortedError, match="ended, and why is not known"):
        act()
    with Aggregator(valkey.url, job=job, rank=0, world_size=1) as aggregator:
        assert mean(aggregator, 0) == 0.0
