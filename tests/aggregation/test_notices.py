"""Every wait ends: by what it waits for, by its limit, or by what ended the generation."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from smlt.aggregation.notices import Arrival, Notices
from smlt.errors import AbortedError, FrameError, RankMissingError, StoreUnreachableError
from smlt.io.keys import GenerationKeys
from smlt.io.stores import open_parameter_store
from tests.aggregation.worlds import FOREVER_S, memory_store
from tests.io.servers import Proxy

LIMIT_S = 10.0
_numbers = itertools.count()


class Reader:
    """Rank 0's notices, being read from a store, and a second client that gives them."""

    def __init__(self, open_reader, open_writer=None):
        self.store = open_reader()
        self.writer = (open_writer or open_reader)()
        self.keys = GenerationKeys(f"notices{next(_numbers)}", 1)
        self.control = []
        self.notices = Notices(self.store, self.keys, 0, self.control.append)

    async def __aenter__(self):
        await self.writer.mark(self.keys.marker, ttl_s=FOREVER_S)
        self._reading = asyncio.create_task(self.notices.run())
        return self

    async def __aexit__(self, *_):
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.store.close()
        await self.writer.close()

    async def give(self, arrival, stream=None):
        stream = stream or (self.keys.means if arrival.is_mean else self.keys.contributions(0))
        await self.writer.announce(stream, arrival.fields, guard=self.keys.marker)

    def wait(self, arrival, limit_s=LIMIT_S):
        return self.notices.wait(arrival, limit_s)


def run(body, *stores):
    async def whole():
        async with Reader(*stores) as reader:
            await body(reader)

    asyncio.run(whole())


@pytest.mark.parametrize("is_mean", [False, True])
def test_a_wait_ends_when_the_shard_is_announced(is_mean):
    async def body(reader):
        waiting = asyncio.create_task(reader.wait(Arrival(1, 2, 3, is_mean)))
        for other in (
            Arrival(1, 2, 4, is_mean),
            Arrival(1, 1, 3, is_mean),
            Arrival(2, 2, 3, is_mean),
            Arrival(1, 2, 3, not is_mean),
        ):
            await reader.give(other)
        await reader.wait(Arrival(1, 2, 3, not is_mean))
        assert not waiting.done()
        await reader.give(Arrival(1, 2, 3, is_mean))
        await waiting

    run(body, memory_store())


def test_what_came_before_the_wait_counts():
    async def body(reader):
        await reader.give(Arrival(0, 0, 1))
        await reader.give(Arrival(0, 1, 1))
        await reader.wait(Arrival(0, 1, 1))
        await reader.wait(Arrival(0, 0, 1))

    run(body, memory_store())


def test_a_notice_that_comes_twice_counts_once():
    async def body(reader):
        for _ in range(3):
            await reader.give(Arrival(0, 0, 1))
        await reader.give(Arrival(0, 1, 1))
        await reader.wait(Arrival(0, 1, 1))
        await reader.wait(Arrival(0, 0, 1))
        reader.notices.forget(0)
        with pytest.raises(RankMissingError):
            await reader.wait(Arrival(1, 0, 1), 0.05)

    run(body, memory_store())


def test_a_rank_that_does_not_come_is_named():
    async def body(reader):
        with pytest.raises(RankMissingError, match=r"shard 5 of rank 3 .* 0\.05 s.* step 7"):
            await reader.wait(Arrival(7, 5, 3), 0.05)
        with pytest.raises(RankMissingError, match=r"mean of shard 5 by rank 1 .* step 7"):
            await reader.wait(Arrival(7, 5, 1, True), 0.05)

    run(body, memory_store())


def test_the_limit_is_on_silence():
    async def body(reader):
        waiting = asyncio.create_task(reader.wait(Arrival(0, 9, 1), 0.5))
        for shard in range(9):
            await asyncio.sleep(0.1)
            await reader.give(Arrival(0, shard, 2))
        await reader.give(Arrival(0, 9, 1))
        await waiting

    run(body, memory_store())


def test_what_has_been_waited_for_longest_is_told():
    async def body(reader):
        assert reader.notices.waiting_for == ""
        waits = [
            asyncio.create_task(reader.wait(arrival))
            for arrival in (Arrival(0, 2, 3), Arrival(0, 4, 0, True))
        ]
        await asyncio.sleep(0)
        assert reader.notices.waiting_for == "shard 2 of rank 3"
        await reader.give(Arrival(0, 2, 3))
        await waits[0]
        assert reader.notices.waiting_for == "the mean of shard 4 by rank 0"
        await reader.give(Arrival(0, 4, 0, True))
        await waits[1]
        assert reader.notices.waiting_for == ""

    run(body, memory_store())


def test_a_failure_wakes_every_wait_and_the_first_one_stands():
    async def body(reader):
        async def work():
            async with reader.notices.unless_failed():
                await asyncio.Event().wait()

        waits = [asyncio.create_task(reader.wait(Arrival(0, shard, 1))) for shard in range(5)]
        waits.append(asyncio.create_task(work()))
        await asyncio.sleep(0)
        reader.notices.fail(AbortedError("the first"))
        reader.notices.fail(AbortedError("the second"))
        for wait in [*waits, reader.wait(Arrival(3, 0, 1, True)), work()]:
            with pytest.raises(AbortedError, match="the first"):
                await wait
        with pytest.raises(AbortedError, match="the first"):
            reader.notices.check()

    run(body, memory_store())


def test_work_that_nothing_ends_is_cancelled_as_ever():
    async def body(reader):
        async def work():
            async with reader.notices.unless_failed():
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

        async def late():
            async with reader.notices.unless_failed():
                raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            await late()

    run(body, memory_store())


def test_control_notices_are_passed_on():
    async def body(reader):
        await reader.writer.announce(reader.keys.control, {"a": b"1"}, guard=reader.keys.marker)
        await reader.give(Arrival(0, 0, 1))
        await reader.wait(Arrival(0, 0, 1))
        assert reader.control == [{"a": b"1"}]

    run(body, memory_store())


@pytest.mark.parametrize(
    "fields", [{}, {"step": b"x", "shard": b"0", "rank": b"1"}, {"step": b"1", "shard": b"0"}]
)
def test_a_notice_that_is_none_fails_the_waits(fields):
    async def body(reader):
        await reader.writer.announce(reader.keys.means, fields, guard=reader.keys.marker)
        with pytest.raises(FrameError, match="notice"):
            await reader.wait(Arrival(0, 0, 1, True))

    run(body, memory_store())


def test_a_store_that_is_gone_fails_the_waits(tmp_path):
    def nowhere():
        return open_parameter_store(f"unix://{tmp_path}/none.sock", time_limit_s=0.2)

    async def body(reader):
        with pytest.raises(StoreUnreachableError):
            await reader.wait(Arrival(0, 0, 1))

    run(body, nowhere, memory_store())


def test_nothing_is_lost_when_connections_are_cut(valkey, open_valkey):
    arrivals = [Arrival(step, shard, 1) for step in range(20) for shard in range(10)]

    async def whole():
        async with Proxy(valkey.path) as proxy:
            reader = Reader(lambda: open_parameter_store(proxy.url, time_limit_s=10), open_valkey)
            async with reader:
                waits = [asyncio.create_task(reader.wait(arrival)) for arrival in arrivals]
                for number, arrival in enumerate(arrivals):
                    await reader.give(arrival)
                    if number % 10 == 5:
                        proxy.cut()
                await asyncio.gather(*waits)

    asyncio.run(whole())


def test_a_reply_that_is_cut_short_comes_again(valkey, open_valkey):
    arrivals = [Arrival(0, shard, 1) for shard in range(100)]
    # Each connection passes some more than the one before, until the whole reply fits.
    budgets = itertools.count(500, 1500)

    async def whole():
        async with Proxy(valkey.path, lambda: next(budgets)) as proxy:
            reader = Reader(lambda: open_parameter_store(proxy.url, time_limit_s=10), open_valkey)
            await reader.writer.mark(reader.keys.marker, ttl_s=FOREVER_S)
            for arrival in arrivals:
                await reader.give(arrival)
            async with reader:
                for arrival in arrivals:
                    await reader.wait(arrival)
            assert proxy.cuts > 2

    asyncio.run(whole())
