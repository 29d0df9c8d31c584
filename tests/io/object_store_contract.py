"""What every object store does. Subclass it with a fixture ``store``, empty and of the test's own,
and ``twin``, a second client of the same store."""

from __future__ import annotations

import asyncio

import pytest

from smlt.errors import NotFoundError, PreconditionError, StoreError
from smlt.io.object_store import ObjectInfo
from smlt.io.stores import open_object_store


async def keys(store, prefix: str) -> list[str]:
    return [info.key async for info in store.list(prefix)]


def run(scenario, *stores):
    """Run a scenario, and close the stores on its loop."""

    async def closing():
        try:
            await scenario()
        finally:
            for store in stores:
                await store.close()

    asyncio.run(closing())


class ObjectStoreContract:
    def test_get_returns_what_was_put_and_its_etag(self, store):
        async def scenario():
            etag = await store.put("a/b/c", b"content")
            assert await store.get("a/b/c") == (b"content", etag)
            assert await store.put("a/b/c", b"other") != etag
            assert (await store.get("a/b/c"))[0] == b"other"

        run(scenario, store)

    def test_put_joins_pieces_of_any_kind(self, store):
        async def scenario():
            await store.put("k", [b"ab", bytearray(b"cd"), memoryview(b"xef")[1:], b""])
            assert (await store.get("k"))[0] == b"abcdef"
            await store.put("k", [])
            assert (await store.get("k"))[0] == b""

        run(scenario, store)

    def test_a_missing_object_is_not_found(self, store):
        async def scenario():
            await store.put("a/b", b"x")
            for key in ("a/c", "a", "a/b/c"):
                with pytest.raises(NotFoundError, match=f"{key} in"):
                    await store.get(key)
                with pytest.raises(NotFoundError):
                    await store.get_range(key, 0, 1)
                assert await store.head(key) is None
                assert store.local_path(key) is None
                await store.delete(key)

        run(scenario, store)

    def test_get_range_ends_where_the_object_does(self, store):
        async def scenario():
            await store.put("k", bytes(range(100)))
            assert await store.get_range("k", 10, 5) == bytes(range(10, 15))
            assert await store.get_range("k", 90, 50) == bytes(range(90, 100))
            assert await store.get_range("k", 100, 5) == b""
            assert store.read_range("k", 98, 2) == bytes((98, 99))

        run(scenario, store)

    def test_head_tells_the_size(self, store):
        async def scenario():
            await store.put("k", b"12345")
            assert await store.head("k") == ObjectInfo("k", 5)

        run(scenario, store)

    def test_if_absent_has_one_winner(self, store, twin):
        async def scenario():
            calls = [
                client.put("state", b"%d" % i, if_absent=True)
                for i, client in enumerate([store, twin] * 10)
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
            won = [i for i, result in enumerate(results) if isinstance(result, str)]
            assert len(won) == 1
            assert sum(isinstance(result, PreconditionError) for result in results) == 19
            assert await store.get("state") == (b"%d" % won[0], results[won[0]])

        run(scenario, store, twin)

    def test_if_match_has_one_winner(self, store, twin):
        async def scenario():
            etag = await store.put("state", b"before")
            calls = [
                client.put("state", b"%d" % i, if_match=etag)
                for i, client in enumerate([store, twin] * 10)
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(result, str) for result in results) == 1
            with pytest.raises(PreconditionError, match="state"):
                await store.put("state", b"late", if_match=etag)
            with pytest.raises(PreconditionError):
                await store.put("none", b"x", if_match=etag)
            assert await store.head("none") is None

        run(scenario, store, twin)

    def test_list_is_in_the_order_of_keys(self, store):
        async def scenario():
            names = ["a", "a-b/x", "a.c", "b/1/z", "b/1-2", "b/10", "b/1/a", "c", "ä/ü"]
            for name in names[1:]:
                await store.put(name, name.encode())
            assert await keys(store, "") == sorted(names[1:])
            assert await keys(store, "b/1") == ["b/1-2", "b/1/a", "b/1/z", "b/10"]
            assert await keys(store, "b/1/") == ["b/1/a", "b/1/z"]
            assert await keys(store, "b/1/a") == ["b/1/a"]
            assert await keys(store, "nothing/here") == []
            assert [info.size async for info in store.list("c")] == [1]

        run(scenario, store)

    def test_a_deleted_object_is_gone(self, store):
        async def scenario():
            await store.put("a/b/c", b"x")
            await store.put("a/d", b"y")
            await store.delete("a/b/c")
            await store.delete("a/b/c")
            assert await keys(store, "") == ["a/d"]

        run(scenario, store)

    def test_put_file_copies_once(self, store, tmp_path):
        async def scenario():
            path = tmp_path / "file"
            path.write_bytes(bytes(range(256)) * 1000)
            await store.put_file("data/x", path)
            path.write_bytes(b"y" * 256_000)
            assert (await store.get("data/x"))[0] == bytes(range(256)) * 1000
            await store.put_file("data/x", path)
            assert (await store.get("data/x"))[0] == bytes(range(256)) * 1000
            with pytest.raises(NotFoundError, match="no such file"):
                await store.put_file("data/y", tmp_path / "none")

        run(scenario, store)

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a\\b"]
    )
    def test_a_key_that_is_no_key_is_refused(self, store, key):
        async def scenario():
            for call in (store.get, store.head, store.delete):
                with pytest.raises(StoreError, match="cannot be stored"):
                    await call(key)
            with pytest.raises(StoreError, match="cannot be stored"):
                await store.put(key, b"x")

        run(scenario, store)

    def test_the_url_leads_to_the_same_store(self, store):
        async def scenario():
            await store.put("k", b"x")
            async with open_object_store(store.url) as other:
                assert (await other.get("k"))[0] == b"x"

        run(scenario, store)
