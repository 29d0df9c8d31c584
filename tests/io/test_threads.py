"""Functions on threads beside an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from smlt.io.threads import Threads


@pytest.fixture
def threads():
    threads = Threads(2, "test")
    yield threads
    threads.close()


def test_results_and_errors_come_back(threads):
    async def run():
        assert await threads.run(divmod, 7, 3) == (2, 1)
        assert await threads.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)
        assert await asyncio.gather(*(threads.run(pow, n, 2) for n in range(50))) == [
            n * n for n in range(50)
        ]

    asyncio.run(run())


def test_no_more_threads_than_were_asked_for_and_none_after_closing(threads):
    def named():
        return [t for t in threading.enumerate() if t.name.startswith("test-")]

    async def run():
        await asyncio.gather(*(threads.run(sum, range(10_000)) for _ in range(20)))
        return named()

    begun = asyncio.run(run())
    assert 1 <= len(begun) <= 2
    threads.close()
    for thread in begun:
        thread.join(10)
    assert not named()


def test_a_cancelled_call_returns_when_its_function_has(threads):
    entered, may_end, ended = (threading.Event() for _ in range(3))

    def slow():
        entered.set()
        may_end.wait(10)
        ended.set()

    async def run():
        cuts = []
        calling = asyncio.create_task(threads.run(slow, cut=lambda: cuts.append(1)))
        await asyncio.to_thread(entered.wait, 10)
        for _ in range(3):  # the second and third change nothing
            calling.cancel()
            await asyncio.sleep(0.01)
            assert not calling.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert ended.is_set()
        assert cuts == [1]

    asyncio.run(run())
