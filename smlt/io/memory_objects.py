"""An object store in the memory of one process: for tests, simulation and a single rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import xxhash

from smlt.errors import NotFoundError, PreconditionError
from smlt.io.memory_contents import contents_of
from smlt.io.object_store import (
    Bytes,
    Moved,
    ObjectInfo,
    ObjectStore,
    check_key,
    ignore,
    pieces,
)


class MemoryObjectStore(ObjectStore):
    """An object store that lives as long as the process; clients of one name share it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._contents = contents_of(name)

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    async def close(self) -> None:
        """Do nothing: the contents belong to all clients of the name."""

    async def get(self, key: str) -> tuple[bytes, str]:
        data = self._read(key)
        return data, _etag(data)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._read(key)[start : start + length]

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Do what ``get_range`` does, for readers that have a thread of their own."""
        return self._read(key)[start : start + length]

    def _read(self, key: str) -> bytes:
        check_key(key)
        try:
            return self._contents.objects[key]
        except KeyError:
            raise NotFoundError(
                f"cannot read {key} in {self.url}: there is no such object"
            ) from None

    async def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        data = self._contents.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data))

    async def put(
        self,
        key: str,
        data: Bytes | Sequence[Bytes],
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        check_key(key)
        joined = b"".join(pieces(data))
        with self._contents.lock:
            current = self._contents.objects.get(key)
            if if_absent and current is not None:
                raise PreconditionError(f"{key} in {self.url} exists already")
            if if_match and (current is None or _etag(current) != if_match):
                raise PreconditionError(f"{key} in {self.url} was changed by another writer")
            self._contents.objects[key] = joined
        return _etag(joined)

    async def put_file(self, key: str, path: Path, moved: Moved = ignore) -> None:
        check_key(key)
        if key in self._contents.objects:
            return
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError as exc:
            raise NotFoundError(f"cannot store {path}: there is no such file") from exc
        await self.put(key, data)
        moved(len(data))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(key for key in self._contents.objects if key.startswith(prefix)):
            data = self._contents.objects.get(key)
            if data is not None:
                yield ObjectInfo(key, len(data))

    async def delete(self, key: str) -> None:
        check_key(key)
        self._contents.objects.pop(key, None)

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None


def _etag(data: bytes) -> str:
    return str(xxhash.xxh3_128_hexdigest(data))
