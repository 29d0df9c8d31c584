"""Several parameter stores as one: shards are spread over them, all else lies on the first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import xxhash

from smlt.io.parameter_store import Notice, ParameterStore, all_requests
from smlt.io.routed_store import RoutedStore

T = TypeVar("T")

_BEGINNING = "0-0"
_BETWEEN = ","
_Reading = tuple[int, tuple[tuple[str, str], ...], int]
"""A server, the ids to read behind, and the most to read."""


class ServerGroup(RoutedStore):
    """A frame and its notice lie on one server, which rendezvous hashing chooses by the key.

    All clients give the servers in one order. A stream has a part on every server, so the id of a
    notice joins an id for each of them; notices of different servers come in any order. The marker
    is on every server, and each write checks it where it writes: one server lost is the generation
    lost. Belongs to one event loop.
    """

    def __init__(self, url: str, servers: Sequence[ParameterStore]) -> None:
        self._url = url
        self._servers = servers
        self._reading: dict[_Reading, asyncio.Task[list[Notice]]] = {}

    @property
    def url(self) -> str:
        return self._url

    @property
    def carries(self) -> bool:
        return all(server.carries for server in self._servers)

    @property
    def requests(self) -> Mapping[str, int]:
        return all_requests(self._servers)

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        await _all(server.mark(guard, ttl_s=ttl_s) for server in self._servers)

    async def check(self, guard: str) -> None:
        await _all(server.check(guard) for server in self._servers)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        ids = {stream: self._split(joined) for stream, joined in after.items()}
        while True:
            left_s = end - loop.time()
            if left_s <= 0:
                return self._joined(ids, await self._read_all(ids, limit), limit)
            begun = self._begun(ids, left_s, limit)
            await asyncio.wait(begun.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            # What has nothing yet goes on: to cancel it would cost a connection.
            ended = [(reading, task) for reading, task in begun.items() if task.done()]
            for reading, _ in ended:
                self._reading.pop(reading, None)
            found = [(reading[0], task.result()) for reading, task in ended]
            if any(notices for _, notices in found):
                return self._joined(ids, found, limit)

    def _begun(
        self, ids: Mapping[str, list[str]], wait_s: float, limit: int
    ) -> dict[_Reading, asyncio.Task[list[Notice]]]:
        """Begin to read on every server where that does not go on already."""
        begun = {}
        for number, server in enumerate(self._servers):
            behind = {stream: each[number] for stream, each in ids.items()}
            reading = (number, tuple(sorted(behind.items())), limit)
            if reading not in self._reading:
                task = asyncio.create_task(server.read(behind, wait_s=wait_s, limit=limit))
                self._reading[reading] = task
            begun[reading] = self._reading[reading]
        return begun

    async def _read_all(
        self, ids: Mapping[str, list[str]], limit: int
    ) -> list[tuple[int, list[Notice]]]:
        found = await _all(
            server.read({s: each[number] for s, each in ids.items()}, wait_s=0, limit=limit)
            for number, server in enumerate(self._servers)
        )
        return list(enumerate(found))

    def _split(self, joined: str) -> list[str]:
        each = joined.split(_BETWEEN)
        return each if len(each) == len(self._servers) else [_BEGINNING] * len(self._servers)

    def _joined(
        self, ids: dict[str, list[str]], found: Iterable[tuple[int, list[Notice]]], limit: int
    ) -> list[Notice]:
        """Give each notice the id to go on from on every server after it.

        What is beyond the limit is left, to be read again.
        """
        notices = []
        room = dict.fromkeys(ids, limit)
        for number, read in found:
            for notice in read:
                if not room[notice.stream]:
                    continue
                room[notice.stream] -= 1
                ids[notice.stream][number] = notice.id
                joined = _BETWEEN.join(ids[notice.stream])
                notices.append(Notice(notice.stream, joined, notice.fields))
        return notices

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._servers[0].values(keys)

    async def discard(self, keys: Sequence[str]) -> None:
        await _all(server.discard(keys) for server in self._servers)

    async def sweep(self, prefix: str) -> None:
        await _all(server.sweep(prefix) for server in self._servers)

    async def close(self) -> None:
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        self._reading.clear()
        for server in self._servers:
            await server.close()

    async def at(self, key: str, call: Callable[[ParameterStore], Awaitable[T]]) -> T:
        return await call(self._servers[0])

    async def at_frame(self, key: str, call: Callable[[ParameterStore], Awaitable[T]]) -> T:
        """Rendezvous hashing: the server whose number mixes with the key to the highest hash."""
        data, numbers = key.encode(), range(len(self._servers))
        chosen = max(numbers, key=lambda n: xxhash.xxh3_64_intdigest(data, seed=n))
        return await call(self._servers[chosen])


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results, or raise the first failure once every call has ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
