"""The parameter store on real servers: healthy, killed, restarted, full, and badly connected."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time

import pytest
from parameter_store_contract import FOREVER, ParameterStoreContract, keys_of, mark, put
from servers import Proxy, ValkeyServer, eventually

from smlt.errors import (
    ConfigError,
    FrameError,
    StoreError,
    StoreFullError,
    StoreLostError,
    StoreUnreachableError,
)
from smlt.io.stores import open_parameter_store

LIMIT_S = 1.0


def connect(url: str, time_limit_s: float = LIMIT_S):
    return open_parameter_store(url, time_limit_s=time_limit_s)


async def within_limit(call, limit_s: float = LIMIT_S):
    """Await the call, which has to fail as unreachable, and in time; return its sentence."""
    began = time.monotonic()
    with pytest.raises(StoreUnreachableError) as error:
        await call
    assert time.monotonic() - began < limit_s + 1.0
    return str(error.value)


class TestValkeyStore(ParameterStoreContract):
    @pytest.fixture
    def opened(self, shared_server):
        return lambda: connect(shared_server.url, 10)


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory):
    path = tmp_path_factory.mktemp("locked") / "valkey.sock"
    user = ("--user", "trainer", "on", ">pass/word:@", "~*", "&*", "+@all")
    with ValkeyServer(path, "--requirepass", "default", *user) as server:
        yield server


class TestValkeyStoreOverTcpWithPassword(ParameterStoreContract):
    @pytest.fixture
    def opened(self, locked_server):
        url = f"redis://trainer:pass%2Fword%3A%40@127.0.0.1:{locked_server.port}/3"
        return lambda: connect(url, 10)

    def test_the_default_user_has_a_password(self, locked_server):
        async def scenario():
            host = f"127.0.0.1:{locked_server.port}"
            async with connect(f"redis://:default@{host}") as store:
                await store.mark("g", ttl_s=FOREVER)
            for user in ("", ":wrong@", "nobody:default@"):
                async with connect(f"redis://{user}{host}") as store:
                    for call in (lambda s=store: s.check("g"), lambda s=store: s.get("k")):
                        with pytest.raises(ConfigError, match="refuses user, password") as error:
                            await call()
                        assert "wrong" not in str(error.value)

        asyncio.run(scenario())


def test_databases_are_apart(shared_server, name):
    async def scenario():
        async with connect(f"{shared_server.url}?db=1") as one, connect(shared_server.url) as zero:
            await mark(one, name)
            await put(one, name)
            assert await zero.get(f"{name}k") is None
            assert await one.get(f"{name}k") == b"frame"
        async with connect(f"{shared_server.url}?db=99") as store:
            with pytest.raises(ConfigError, match="DB index is out of range"):
                await store.check("g")

    asyncio.run(scenario())


def test_close_leaves_no_connection(server):
    async def scenario():
        store = connect(server.url)
        await mark(store, "x:")
        await asyncio.gather(*(put(store, "x:", str(i)) for i in range(20)))
        reading = asyncio.create_task(store.read({"s": "0"}, wait_s=0.05))
        await reading
        await store.close()
        await store.close()
        with server.client() as admin:

            async def alone():
                return len(admin.client_list()) == 1

            await eventually(alone)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_server_that_dies_during_a_wait_is_unreachable_in_time(server, how):
    async def scenario():
        async with connect(server.url) as store:
            await mark(store, "x:")
            waiting = asyncio.create_task(store.read({"s": "0"}, wait_s=60))

            async def blocked():
                return server.blocked_clients()

            await eventually(blocked)
            if how == "killed":
                server.kill()
            else:
                server.signal(signal.SIGSTOP)
            sentence = await within_limit(waiting)
            assert f"the parameter store {server.url} cannot be reached within 1 s" in sentence
            calls = (put(store, "x:"), store.values(["a"]))
            await asyncio.gather(*map(within_limit, calls))

    asyncio.run(scenario())


def test_a_server_that_is_restarted_empty_has_lost_the_generation(server):
    async def scenario():
        async with connect(server.url, 10) as store:
            await mark(store, "x:")
            await put(store, "x:")
            waiting = asyncio.create_task(store.read({"other": "0"}, wait_s=60))
            server.kill()
            server.start()
            for call in (
                put(store, "x:"),
                store.check("x:guard"),
                store.announce("s", {"a": b"b"}, guard="x:guard"),
                store.first("f", b"1", guard="x:guard", ttl_s=FOREVER),
            ):
                with pytest.raises(StoreLostError, match="restarted or emptied"):
                    await call
            # A reader has no guard: it waits on, for what the next generation writes.
            await mark(store, "x:")
            await store.announce("other", {"key": b"news"}, guard="x:guard")
            assert [notice.fields for notice in await waiting] == [{"key": b"news"}]

    asyncio.run(scenario())


def test_a_full_server_says_so_and_loses_nothing(tmp_path):
    async def scenario(server):
        async with connect(server.url) as store:
            await mark(store, "x:")
            await put(store, "x:", "small")
            large = [bytes(1_000_000)]
            calls = [put(store, "x:", f"large{i}", large) for i in range(10)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            refused = [result for result in results if isinstance(result, StoreFullError)]
            assert "no memory left: raise its maxmemory" in str(refused[0])
            assert results.count(None) + len(refused) == 10
            with pytest.raises(StoreFullError):
                await store.announce("s", {"a": bytes(1000)}, guard="x:guard")
            with pytest.raises(StoreFullError):
                await store.first("f", b"v", guard="x:guard", ttl_s=FOREVER)
            announced = await keys_of(store, "x:stream")
            for key in announced:
                assert await store.get(f"x:{key}") is not None
            await store.discard([f"x:{key}" for key in announced])

            async def room():
                try:
                    return await put(store, "x:", "again", large) or True
                except StoreFullError:
                    return False  # the server frees memory in the background

            await eventually(room)

    limits = ("--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    with ValkeyServer(tmp_path / "valkey.sock", *limits) as server:
        asyncio.run(scenario(server))


def test_a_server_that_is_not_there_is_unreachable_in_time(tmp_path):
    async def scenario():
        for url, words in [
            (f"unix://{tmp_path}/none.sock", "No such file"),
            ("redis://user:secret@127.0.0.1:1/0", "refused"),
        ]:
            async with connect(url, 0.3) as store:
                for call in (store.check("g"), store.get("k"), store.read({"s": "0"}, wait_s=9)):
                    sentence = await within_limit(call, 0.3)
                    assert words in sentence
                    assert "secret" not in sentence

    asyncio.run(scenario())


def test_a_server_that_comes_late_is_waited_for(tmp_path):
    server = ValkeyServer(tmp_path / "valkey.sock")

    async def scenario():
        async with connect(server.url, 10) as store:
            marking = asyncio.create_task(mark(store, "x:"))
            await asyncio.sleep(0.05)
            with server:
                await marking
                await store.check("x:guard")

    asyncio.run(scenario())


def test_a_server_that_speaks_otherwise_is_refused():
    async def scenario():
        async def serve(reader, writer):
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, connect(f"redis://127.0.0.1:{port}") as store:
            with pytest.raises(Exception, match="does not speak RESP: the reply begins with"):
                await store.get("k")

    asyncio.run(scenario())


def test_a_reply_that_is_far_too_large_is_the_servers_error_but_a_frames_own():
    async def scenario():
        async def serve(reader, writer):
            await reader.read(100)
            writer.write(b"$900000000\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, connect(f"redis://127.0.0.1:{port}") as store:
            with pytest.raises(StoreError, match="holds more than was expected"):
                await store.read({"s": "0-0"}, wait_s=0.1)
            with pytest.raises(FrameError, match="holds more than was expected"):
                await store.get("k")

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_when_connections_are_cut(shared_server, name, seed):
    rng = random.Random(seed)
    frames = {f"{i}": rng.randbytes(rng.choice([10, 5_000, 100_000])) for i in range(80)}

    async def scenario():
        cuts = Proxy(shared_server.path, next_cut=lambda: rng.randrange(100, 600_000))
        async with cuts, connect(cuts.url, 20) as writer, connect(cuts.url, 20) as reader:
            await mark(writer, name)

            async def follow():
                after, seen = "0", []
                while set(seen) != set(frames):
                    notices = await reader.read({f"{name}stream": after}, wait_s=10)
                    assert notices, "a notice was lost"
                    after = notices[-1].id
                    for notice in notices:
                        key = notice.fields["key"].decode()
                        assert await reader.get(name + key) == frames[key]
                        seen.append(key)
                return seen

            following = asyncio.create_task(follow())
            for key, frame in frames.items():
                await put(writer, name, key, [frame])
            seen = await following
            # Repeats may come, but what is new comes in the order of its puts.
            assert list(dict.fromkeys(seen)) == list(frames)
            assert cuts.cuts > 3

    asyncio.run(scenario())


def test_a_first_whose_answer_was_lost_is_still_ours(shared_server, name):
    async def scenario():
        async with Proxy(shared_server.path) as proxy, connect(proxy.url, 10) as store:
            await mark(store, name)
            proxy.mute_replies = True
            claiming = asyncio.create_task(
                store.first(
                    f"{name}claim",
                    b"me",
                    guard=f"{name}guard",
                    ttl_s=FOREVER,
                    stream=f"{name}stream",
                    fields={"key": b"me"},
                )
            )
            async with connect(shared_server.url) as beside:

                async def claimed():
                    return await beside.values([f"{name}claim"]) == [b"me"]

                await eventually(claimed)
                proxy.mute_replies = False
                assert await claiming == b"me"
                assert await keys_of(beside, f"{name}stream") == ["me"]

    asyncio.run(scenario())


def test_a_slow_transfer_is_not_silence(shared_server, name):
    async def scenario():
        async def trickle(reader, writer):
            server_reader, server_writer = await asyncio.open_unix_connection(shared_server.path)

            async def replies():
                while data := await server_reader.read(1 << 16):
                    writer.write(data)

            passing = asyncio.create_task(replies())
            while data := await reader.read(64_000):
                server_writer.write(data)
                await asyncio.sleep(0.008)
            passing.cancel()
            server_writer.close()
            writer.close()

        sock = socket.create_server(("127.0.0.1", 0))
        # Otherwise the kernel swallows the frame at once and trickles it on in silence.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64_000)
        server = await asyncio.start_server(trickle, sock=sock, limit=64_000)
        port = sock.getsockname()[1]
        async with server, connect(f"redis://127.0.0.1:{port}", 2 * LIMIT_S) as store:
            await mark(store, name)
            began = time.monotonic()
            large = os.urandom(20_000_000)
            await put(store, name, data=[large])
            assert time.monotonic() - began > 2 * LIMIT_S
        async with connect(shared_server.url) as store:
            assert await store.get(f"{name}k") == large

    asyncio.run(scenario())


def test_a_loop_of_commands_ends_when_it_is_cancelled(shared_server, name):
    async def scenario():
        async with connect(shared_server.url, 10) as store:

            async def renew_for_ever():
                while True:
                    await store.renew(name, b"", ttl_s=10)

            # Cancelled at any moment, and often at the one at which a command has been sent.
            for pause in random.Random(0).choices(range(30), k=100):
                loop = asyncio.create_task(renew_for_ever())
                for _ in range(pause):
                    await asyncio.sleep(0)
                loop.cancel()
                done, _ = await asyncio.wait([loop], timeout=5)
                assert done

    asyncio.run(scenario())
