"""Several servers as one parameter store."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from parameter_store_contract import FOREVER, ParameterStoreContract, keys_of, mark, put
from servers import ValkeyServer, eventually

from smlt.errors import ConfigError, StoreLostError, StoreUnreachableError
from smlt.io.memory_contents import forget
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.server_group import ServerGroup
from smlt.io.stores import open_parameter_store


@pytest.fixture
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    with ValkeyServer(folder / "b.sock") as b, ValkeyServer(folder / "c.sock") as c:
        yield b, c


class GroupContract(ParameterStoreContract):
    # Notices of different servers have no order; below, none is lost and none is repeated.
    test_reading_goes_on_from_an_id = None
    test_a_stream_keeps_its_last_notices = None


class TestServerGroupOnMemory(GroupContract):
    @pytest.fixture
    def opened(self, name):
        places = [f"{name}{number}" for number in range(3)]
        yield lambda: ServerGroup(name, [MemoryParameterStore(place) for place in places])
        for place in places:
            forget(place)


@pytest.fixture(scope="module")
def pair(shared_server, tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("pair") / "b.sock") as other:
        yield f"{shared_server.url},redis://127.0.0.1:{other.port}/1"


@pytest.mark.slow
class TestServerGroupOnValkey(GroupContract):
    @pytest.fixture
    def opened(self, pair):
        return lambda: open_parameter_store(pair, time_limit_s=10)


def connect(*servers, time_limit_s=1.0):
    return open_parameter_store(",".join(s.url for s in servers), time_limit_s=time_limit_s)


def test_shards_are_spread_evenly_and_everybody_finds_them(server, others, name):
    async def scenario():
        async with connect(server, *others) as store, connect(server, *others) as reader:
            await mark(store, name)
            for i in range(300):
                await put(store, name, f"{i}:mean")
            for i in range(300):
                assert await reader.get(f"{name}{i}:mean") == b"frame"
            seen = await keys_of(reader, f"{name}stream")
            assert sorted(seen) == sorted(f"{i}:mean" for i in range(300))

    asyncio.run(scenario())
    counts = Counter()
    for one in (server, *others):
        with one.client() as admin:
            counts[one.port] = sum(b"mean" in key for key in admin.keys("*"))
            assert admin.exists(f"{name}guard")
    assert sum(counts.values()) == 300
    assert min(counts.values()) > 60


def test_no_notice_is_lost_or_repeated_while_all_servers_speak(server, others, name):
    """Reads that go on between calls hand over each notice once, in any interleaving."""

    async def scenario():
        async with connect(server, *others, time_limit_s=10) as store:
            await mark(store, name)
            stream = f"{name}stream"

            async def write():
                for i in range(400):
                    await put(store, name, f"{i}")
                    if i % 40 == 0:
                        await asyncio.sleep(0.01)

            writing = asyncio.create_task(write())
            after, seen = "0-0", []
            async with asyncio.timeout(30):
                while len(seen) < 400:
                    for notice in await store.read({stream: after}, wait_s=5.0, limit=7):
                        after = notice.id
                        seen.append(notice.fields["key"])
            await writing
            assert sorted(seen, key=int) == [b"%d" % i for i in range(400)]
            assert await store.read({stream: after}, wait_s=0) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("which", [0, 1])
def test_one_server_restarted_is_the_store_lost(server, others, name, which):
    servers = (server, others[0])

    async def scenario():
        async with connect(*servers, time_limit_s=10) as store:
            await mark(store, name)
            servers[which].kill()
            servers[which].start()
            with pytest.raises(StoreLostError, match="lost the marker"):
                await store.check(f"{name}guard")

            async def write():
                for i in range(20):
                    await put(store, name, f"{i}")
                await store.announce(f"{name}s", {"a": b"b"}, guard=f"{name}guard")

            with pytest.raises(StoreLostError):
                await write()
            await mark(store, name)
            await write()

    asyncio.run(scenario())


def test_one_server_gone_ends_a_waiting_read_in_time(server, others, name):
    async def scenario():
        async with connect(server, others[0]) as store:
            await store.mark(f"{name}guard", ttl_s=FOREVER)
            reading = asyncio.create_task(store.read({f"{name}s": "0"}, wait_s=60))

            async def blocked():
                return others[0].blocked_clients()

            await eventually(blocked)
            others[0].kill()
            async with asyncio.timeout(10):
                with pytest.raises(StoreUnreachableError):
                    await reading

    asyncio.run(scenario())


def test_each_url_of_a_group_is_checked():
    with pytest.raises(ConfigError, match="names no host"):
        open_parameter_store("redis://a,redis://", time_limit_s=1)
