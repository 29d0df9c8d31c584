"""An object store that is waited for: an outage of minutes is a pause of the job, not its failure.

A store's own client tries again for seconds, within one call. Here whole calls are made again, for
minutes, and what is being waited for is told to whoever shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from smlt.errors import PreconditionError, StoreUnreachableError
from smlt.io.object_store import Bytes, Moved, ObjectInfo, ObjectStore, ignore, pieces

T = TypeVar("T")

TELL_S = 5.0
"""A call that takes longer is named as what is waited for."""
PAUSE_S = 1.0
"""Between two calls; the store's own client has insisted before."""


class PatientObjects(ObjectStore):
    """Another object store, whose calls are made again while it is unreachable.

    It belongs to whoever opened it: closing is left to them.
    """

    def __init__(
        self, store: ObjectStore, *, limit_s: float, on_wait: Callable[[str, str], None]
    ) -> None:
        """Store what to wait for.

        Args:
            store: does the work.
            limit_s: how long one call may be made again.
            on_wait: is told, in words, what is waited for and why the last attempt failed, which
                is empty while none has; both are once it is over. It is called on the event loop.
        """
        self.limit_s = limit_s
        self._store = store
        self._on_wait = on_wait
        self._waits: dict[object, tuple[str, str]] = {}
        """What every call that takes long is doing, oldest first."""

    @property
    def url(self) -> str:
        return self._store.url

    async def close(self) -> None:
        """Do nothing: the store is its owner's to close."""

    async def get(self, key: str) -> tuple[bytes, str]:
        return await self._insist(f"read {key}", lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._insist(f"read {key}", lambda: self._store.get_range(key, start, length))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        give_up = time.monotonic() + self.limit_s
        while True:
            try:
                return self._store.read_range(key, start, length)
            except StoreUnreachableError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(PAUSE_S)

    async def head(self, key: str) -> ObjectInfo | None:
        return await self._insist(f"look at {key}", lambda: self._store.head(key))

    async def put(
        self,
        key: str,
        data: Bytes | Sequence[Bytes],
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        unanswered = False

        async def attempt() -> str:
            nonlocal unanswered
            try:
                return await self._store.put(key, data, if_absent=if_absent, if_match=if_match)
            except StoreUnreachableError:
                unanswered = True
                raise
            except PreconditionError:
                if not unanswered:
                    raise
                # The writer that came first may be ourselves: the answer was lost, not the write.
                there, etag = await self._store.get(key)
                if there != b"".join(pieces(data)):
                    raise
                return etag

        return await self._insist(f"write {key}", attempt)

    async def put_file(self, key: str, path: Path, moved: Moved = ignore) -> None:
        await self._insist(f"write {key}", lambda: self._store.put_file(key, path, moved))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def attempt() -> list[ObjectInfo]:
            return [info async for info in self._store.list(prefix)]

        for info in await self._insist(f"list {prefix}", attempt):
            yield info

    async def delete(self, key: str) -> None:
        await self._insist(f"delete {key}", lambda: self._store.delete(key))

    def local_path(self, key: str) -> Path | None:
        return self._store.local_path(key)

    async def _insist(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.limit_s
        with self._told(f"{self.url} to {doing}") as told:
            while True:
                try:
                    return await attempt()
                except StoreUnreachableError as error:
                    if loop.time() > give_up:
                        raise
                    told(str(error))
                await asyncio.sleep(PAUSE_S)

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Say what is waited for once that takes long, and once more when it is over."""
        call = object()

        def tell(why: str) -> None:
            self._waits[call] = doing, why
            self._on_wait(*next(iter(self._waits.values())))

        timer = asyncio.get_running_loop().call_later(TELL_S, tell, "")
        try:
            yield tell
        finally:
            timer.cancel()
            if self._waits.pop(call, None) is not None:
                self._on_wait(*next(iter(self._waits.values()), ("", "")))
