"""Large frames, each moved by a thread: what is whole, what breaks, and what is cancelled."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import numpy as np
import pytest
from parameter_store_contract import mark, put
from servers import Proxy

from smlt.errors import FrameError, StoreUnreachableError
from smlt.io.resp_threads import LARGE_BYTES
from smlt.io.stores import open_parameter_store

FRAME = np.random.default_rng(0).integers(0, 256, 4 * LARGE_BYTES + 5, np.uint8)


def put_frame(store, name, key="k"):
    return put(store, name, key, [FRAME[:10].data, FRAME[10:].data])


def frame_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("smlt-frames")]


@pytest.mark.parametrize("tcp", [False, True])
def test_a_large_frame_comes_back_into_the_buffer_that_is_given(shared_server, name, tcp):
    url = f"redis://127.0.0.1:{shared_server.port}" if tcp else shared_server.url

    async def run():
        async with open_parameter_store(url, time_limit_s=10) as store:
            await mark(store, name)
            await asyncio.gather(*(put_frame(store, name, str(i)) for i in range(20)))
            assert frame_threads()
            rooms = [np.zeros(FRAME.size + 100, np.uint8) for _ in range(20)]
            got = await asyncio.gather(
                *(store.get(f"{name}{i}", into=room.data) for i, room in enumerate(rooms))
            )
            for view, room in zip(got, rooms, strict=True):
                assert np.shares_memory(np.frombuffer(view, np.uint8), room)
                assert np.array_equal(np.frombuffer(view, np.uint8), FRAME)
                assert view.readonly
                assert not room[FRAME.size :].any()
            assert await store.get(f"{name}none", into=rooms[0].data) is None
            with pytest.raises(FrameError, match="more than was expected"):
                await store.get(f"{name}0", into=rooms[0].data, max_bytes=LARGE_BYTES)
        deadline = time.monotonic() + 10
        while frame_threads():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_connections_that_broke_while_idle_are_replaced(server):
    async def run():
        async with open_parameter_store(server.url, time_limit_s=10) as store:
            await mark(store, "x:")
            await asyncio.gather(*(put_frame(store, "x:", str(i)) for i in range(8)))
            server.kill()
            server.start()
            await mark(store, "x:")
            await put_frame(store, "x:")
            view = await store.get("x:k", into=fresh(FRAME.size))
            assert bytes(view) == FRAME.tobytes()

    asyncio.run(run())


def test_a_transfer_that_is_cut_is_repeated(server):
    cuts = iter([FRAME.size // 3, 2 * FRAME.size // 3, 1000])

    async def run():
        proxy = Proxy(server.path)
        async with proxy, open_parameter_store(proxy.url, time_limit_s=10) as store:
            await mark(store, "x:")
            proxy.next_cut = lambda: next(cuts, None)
            await put_frame(store, "x:")
            view = await store.get("x:k", into=fresh(FRAME.size))
            assert bytes(view) == FRAME.tobytes()
            assert proxy.cuts >= 3

    asyncio.run(run())


def test_a_server_that_falls_silent_is_unreachable_in_time(server):
    async def run():
        async with open_parameter_store(server.url, time_limit_s=1.0) as store:
            await mark(store, "x:")
            await put_frame(store, "x:")
            server.signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(StoreUnreachableError, match="does not answer"):
                await store.get("x:k", into=fresh(FRAME.size))
            assert time.monotonic() - began < 5

    asyncio.run(run())


def test_what_is_cancelled_writes_to_its_buffer_no_more(server):
    async def run():
        async with open_parameter_store(server.url, time_limit_s=60) as store:
            await mark(store, "x:")
            await put_frame(store, "x:")
            server.signal(signal.SIGSTOP)
            room = np.zeros(FRAME.size, np.uint8)
            getting = asyncio.create_task(store.get("x:k", into=room.data))
            await asyncio.sleep(0.05)
            getting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(getting), 10)
            server.signal(signal.SIGCONT)
            assert bytes(await store.get("x:k", into=fresh(FRAME.size))) == FRAME.tobytes()
            assert not room.any()

    asyncio.run(run())


def fresh(size):
    return memoryview(bytearray(size))
