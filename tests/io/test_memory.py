"""Both stores in memory, and what only they can do: simulated time, several loops."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from object_store_contract import ObjectStoreContract
from parameter_store_contract import ParameterStoreContract, mark, put

from smlt.errors import StoreLostError
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore

_numbers = itertools.count()


@pytest.fixture
def place():
    place = f"place{next(_numbers)}"
    yield place
    forget(place)


class TestMemoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, place):
        return MemoryObjectStore(place)

    @pytest.fixture
    def twin(self, place):
        return MemoryObjectStore(place)


class TestMemoryParameterStore(ParameterStoreContract):
    @pytest.fixture
    def opened(self, place):
        return lambda: MemoryParameterStore(place)


def test_leases_expire_by_the_clock_that_is_handed_in(place):
    now = 0.0
    store = MemoryParameterStore(place, clock=lambda: now)

    async def scenario():
        nonlocal now
        await store.mark("guard", ttl_s=100)
        await store.renew("lease", b"1", ttl_s=10)
        now = 9.9
        assert await store.values(["lease"]) == [b"1"]
        now = 10.0
        assert await store.values(["lease"]) == [None]
        now = 100.0
        with pytest.raises(StoreLostError):
            await store.check("guard")

    asyncio.run(scenario())


def test_forgetting_is_a_server_that_was_restarted_empty(place):
    store = MemoryParameterStore(place)

    async def scenario():
        await mark(store, "x:")
        await put(store, "x:")
        forget(place)
        with pytest.raises(StoreLostError):
            await put(store, "x:")

    asyncio.run(scenario())


def test_clients_in_other_threads_are_woken(place):
    waiting = threading.Event()

    def wait_for_notice():
        async def scenario():
            reading = asyncio.create_task(MemoryParameterStore(place).read({"s": "0"}, wait_s=10))
            await asyncio.sleep(0)
            waiting.set()
            found.extend(await reading)

        asyncio.run(scenario())

    found = []
    thread = threading.Thread(target=wait_for_notice)
    thread.start()
    assert waiting.wait(10)

    async def announce():
        store = MemoryParameterStore(place)
        await store.mark("g", ttl_s=100)
        await store.announce("s", {"a": b"1"}, guard="g")

    asyncio.run(announce())
    thread.join(10)
    assert [notice.fields for notice in found] == [{"a": b"1"}]
