"""What every parameter store does. Subclass it with a fixture ``opened``, which returns a new
client of one store each time it is called; ``name`` is a prefix of the test's own."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import pytest
from servers import eventually

from smlt.errors import FrameError, StoreLostError
from smlt.io.parameter_store import CARRIED

FOREVER = 600.0


async def put(
    store,
    name,
    key="k",
    data=(b"frame",),
    *,
    fields=None,
    maxlen=1000,
    ttl_s=FOREVER,
    carried=False,
):
    await store.put(
        name + key,
        data,
        stream=f"{name}stream",
        fields={"key": key.encode()} if fields is None else fields,
        guard=f"{name}guard",
        ttl_s=ttl_s,
        maxlen=maxlen,
        carried=carried,
    )


async def mark(store, name):
    await store.mark(f"{name}guard", ttl_s=FOREVER)


async def keys_of(store, stream, after="0", wait_s=0.0):
    return [n.fields["key"].decode() for n in await store.read({stream: after}, wait_s=wait_s)]


class ParameterStoreContract:
    def test_get_returns_the_pieces_that_were_put(self, opened, name):
        large = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)

        async def scenario():
            async with opened() as store, opened() as reader:
                await mark(store, name)
                for pieces in [
                    [b""],
                    [b"a", b"b"],
                    [bytes(17_000), b"tail"],
                    [b"head", large.data, bytearray(b"x" * 70_000), memoryview(b"tail")],
                    [large[i : i + 300].data for i in range(0, 600_000, 300)],
                ]:
                    await put(store, name, data=pieces)
                    value = await reader.get(f"{name}k")
                    assert isinstance(value, memoryview)
                    assert value.readonly
                    assert value == b"".join(pieces)
                assert await reader.get(f"{name}none") is None

        asyncio.run(scenario())

    @pytest.mark.parametrize("size", [0, 10, 100_000])
    def test_get_uses_the_buffer_that_is_given(self, opened, name, size):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                data = os.urandom(size)
                await put(store, name, data=[data])
                buffer = bytearray(120_000)
                value = await store.get(f"{name}k", into=memoryview(buffer))
                assert value == data == buffer[:size]
                small = bytearray(max(0, size - 1))
                assert await store.get(f"{name}k", into=memoryview(small)) == data
                assert await store.get(f"{name}none", into=memoryview(buffer)) is None
                assert await store.get(f"{name}k") == data

        asyncio.run(scenario())

    def test_a_frame_larger_than_expected_is_refused(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                await put(store, name, data=[bytes(300_000)])
                with pytest.raises(FrameError, match="300000 bytes"):
                    await store.get(f"{name}k", max_bytes=200_000)
                assert await store.get(f"{name}k", max_bytes=300_000) == bytes(300_000)

        asyncio.run(scenario())

    def test_a_put_is_announced_after_it_can_be_read(self, opened, name):
        async def scenario():
            async with opened() as store, opened() as reader:
                await mark(store, name)
                waiting = asyncio.create_task(
                    reader.read({f"{name}other": "0", f"{name}stream": "0"}, wait_s=10)
                )
                await put(store, name, fields={"key": b"k", "rank": b"\x00\xff"})
                [notice] = await waiting
                assert notice.stream == f"{name}stream"
                assert notice.fields == {"key": b"k", "rank": b"\x00\xff"}
                assert await reader.get(f"{name}k") == b"frame"

        asyncio.run(scenario())

    def test_a_frame_that_is_carried_comes_with_its_notice(self, opened, name):
        frame = os.urandom(40_000)

        async def scenario():
            async with opened() as store, opened() as reader:
                if not store.carries:
                    return
                await mark(store, name)
                for data in ([frame[:9], memoryview(frame)[9:]], [b""]):
                    await put(store, name, data=data, carried=True)
                notices = await reader.read({f"{name}stream": "0"}, wait_s=10)
                assert [n.fields for n in notices] == [
                    {"key": b"k", CARRIED: frame},
                    {"key": b"k", CARRIED: b""},
                ]
                assert await reader.get(f"{name}k") is None
                for i in range(30):
                    await put(store, name, data=[frame, b"%d" % i], carried=True, maxlen=10)
                kept = await reader.read({f"{name}stream": "0"}, wait_s=0)
                assert [n.fields[CARRIED][40_000:] for n in kept[-10:]] == [
                    b"%d" % i for i in range(20, 30)
                ]
                assert len(kept) < 15

        asyncio.run(scenario())

    def test_reading_goes_on_from_an_id(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                for i in range(10):
                    await put(store, name, f"k{i}")
                after, seen = "0", []
                while notices := await store.read({f"{name}stream": after}, wait_s=0, limit=3):
                    assert len(notices) <= 3
                    seen += [notice.fields["key"].decode() for notice in notices]
                    after = notices[-1].id
                assert seen == [f"k{i}" for i in range(10)]
                await put(store, name, "late")
                assert await keys_of(store, f"{name}stream", after) == ["late"]

        asyncio.run(scenario())

    def test_several_streams_are_read_at_once(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                for stream in "ab":
                    await store.announce(name + stream, {"x": b"1"}, guard=f"{name}guard")
                notices = await store.read({f"{name}a": "0-0", f"{name}b": "0"}, wait_s=0)
                assert sorted(notice.stream for notice in notices) == [f"{name}a", f"{name}b"]

        asyncio.run(scenario())

    def test_a_read_waits_no_longer_than_it_is_told(self, opened, name):
        async def scenario():
            async with opened() as store:
                began = time.monotonic()
                assert await store.read({f"{name}stream": "0"}, wait_s=0.2) == []
                assert 0.19 < time.monotonic() - began < 2
                assert await store.read({f"{name}stream": "0"}, wait_s=0) == []

        asyncio.run(scenario())

    def test_a_stream_keeps_its_last_notices(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                for i in range(400):
                    await put(store, name, f"k{i}", maxlen=50)
                kept = await keys_of(store, f"{name}stream")
                assert kept[-50:] == [f"k{i}" for i in range(350, 400)]
                assert len(kept) < 400

        asyncio.run(scenario())

    def test_every_write_needs_the_marker(self, opened, name):
        async def scenario():
            async with opened() as store:
                guard = f"{name}guard"
                for call in (
                    lambda: store.check(guard),
                    lambda: put(store, name),
                    lambda: put(store, name, carried=store.carries),
                    lambda: store.announce(f"{name}stream", {"a": b"b"}, guard=guard),
                    lambda: store.first(f"{name}f", b"v", guard=guard, ttl_s=FOREVER),
                ):
                    with pytest.raises(StoreLostError, match=f"lost the marker {guard}"):
                        await call()
                await mark(store, name)
                await store.check(guard)
                await put(store, name)

        asyncio.run(scenario())

    def test_first_has_one_winner_and_one_notice(self, opened, name):
        async def scenario():
            async with opened() as store, opened() as other:
                await mark(store, name)
                calls = [
                    client.first(
                        f"{name}claim",
                        b"%d" % i,
                        guard=f"{name}guard",
                        ttl_s=FOREVER,
                        stream=f"{name}stream",
                        fields={"key": b"%d" % i},
                    )
                    for i, client in enumerate([store, other] * 8)
                ]
                results = await asyncio.gather(*calls)
                [winner] = set(results)
                assert await keys_of(store, f"{name}stream") == [winner.decode()]
                assert await store.values([f"{name}claim"]) == [winner]
                again = await store.first(
                    f"{name}claim", b"late", guard=f"{name}guard", ttl_s=FOREVER
                )
                assert again == winner

        asyncio.run(scenario())

    def test_first_works_without_a_notice_and_with_an_empty_value(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                for value in (b"", b"x"):
                    stands = await store.first(
                        f"{name}f", value, guard=f"{name}guard", ttl_s=FOREVER
                    )
                    assert stands == b""

        asyncio.run(scenario())

    def test_a_lease_disappears_unless_it_is_renewed(self, opened, name):
        async def scenario():
            async with opened() as store:
                await store.renew(f"{name}kept", b"1", ttl_s=FOREVER)
                await store.renew(f"{name}lost", b"1", ttl_s=0.05)
                await store.renew(f"{name}kept", b"2", ttl_s=FOREVER)

                async def gone():
                    return await store.values([f"{name}lost"]) == [None]

                await eventually(gone)
                assert await store.values([f"{name}kept", f"{name}none"]) == [b"2", None]

        asyncio.run(scenario())

    def test_frames_streams_and_markers_expire(self, opened, name):
        async def scenario():
            async with opened() as store:
                await store.mark(f"{name}guard", ttl_s=0.5)
                await put(store, name, ttl_s=0.3)

                async def gone():
                    frame = await store.get(f"{name}k")
                    return frame is None and not await keys_of(store, f"{name}stream")

                await eventually(gone)

                async def lost():
                    try:
                        await store.check(f"{name}guard")
                    except StoreLostError:
                        return True

                await eventually(lost)

        asyncio.run(scenario())

    def test_discard_frees_only_what_it_names(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                for key in "abc":
                    await put(store, name, key)
                await store.discard([f"{name}a", f"{name}c", f"{name}none"])
                await store.discard([])
                found = [await store.get(name + key) for key in "abc"]
                assert found == [None, b"frame", None]

        asyncio.run(scenario())

    def test_sweep_removes_its_prefix_and_nothing_else(self, opened, name):
        async def scenario():
            async with opened() as store:
                prefix = f"smlt:{{{name}*[a]?:"
                lookalike = f"smlt:{{{name}xaa:"
                await mark(store, prefix)
                await mark(store, lookalike)
                for i in range(30):
                    await put(store, prefix, f"{i}")
                    await put(store, lookalike, f"{i}")
                await store.sweep(prefix)
                assert await store.get(f"{prefix}7") is None
                assert await store.read({f"{prefix}stream": "0"}, wait_s=0) == []
                assert len(await keys_of(store, f"{lookalike}stream")) == 30
                await store.check(f"{lookalike}guard")
                await store.sweep(lookalike)

        asyncio.run(scenario())

    def test_many_callers_share_a_client(self, opened, name):
        frames = [os.urandom(50_000 + i) for i in range(60)]

        async def scenario():
            async with opened() as store:
                await mark(store, name)
                stream = f"{name}stream"
                waiting = [
                    asyncio.create_task(store.read({f"{name}quiet{i}": "0"}, wait_s=0.5))
                    for i in range(12)
                ]
                await asyncio.gather(
                    *(put(store, name, f"{i}", [frame]) for i, frame in enumerate(frames))
                )
                found = await asyncio.gather(*(store.get(f"{name}{i}") for i in range(60)))
                assert found == frames
                assert sorted(await keys_of(store, stream), key=int) == [str(i) for i in range(60)]
                assert await asyncio.gather(*waiting) == [[]] * 12

        asyncio.run(scenario())

    def test_a_cancelled_call_leaves_the_client_usable(self, opened, name):
        async def scenario():
            async with opened() as store:
                await mark(store, name)
                large = os.urandom(4_000_000)
                for i in range(20):
                    calls = [put(store, name, data=[large]), store.get(f"{name}k")]
                    tasks = [asyncio.create_task(call) for call in calls]
                    for _ in range(i):
                        await asyncio.sleep(0)
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                # Under a key of its own: a cancelled put may still be on its way.
                await put(store, name, "after", [b"after"])
                assert await store.get(f"{name}after") == b"after"
                waiting = asyncio.create_task(store.read({f"{name}other": "0"}, wait_s=60))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                assert await store.read({f"{name}other": "0"}, wait_s=0) == []

        asyncio.run(scenario())
