"""The durable store for code, data, checkpoints and job state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from smlt.errors import StoreError

Bytes = bytes | bytearray | memoryview
Moved = Callable[[int], None]


def ignore(_: int) -> None:
    """Hear of bytes that nobody waits for."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What every store knows of an object without reading it."""

    key: str
    size: int
    tag: str = ""
    """Another one once the bytes are others, where a listing tells; else empty."""


class ObjectStore(Protocol):
    """Keys to bytes, with conditional writes. Keys are ``/``-separated, relative, without ``..``.

    All methods raise StoreUnreachableError when the store does not answer, StoreFullError
    when it has no room, StoreError for a key that no store can hold, and ConfigError where it
    refuses the user's credentials or has no such bucket.
    """

    @property
    def url(self) -> str:
        """What ``open_object_store`` needs to reach the same store from another process."""
        ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, if it has any. Idempotent."""
        ...

    async def get(self, key: str) -> tuple[bytes, str]:
        """Return the object and its etag.

        Raises:
            NotFoundError: no such key.
        """
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from offset ``start`` (fewer at the object's end).

        Raises:
            NotFoundError: no such key.
        """
        ...

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Do what ``get_range`` does, blocking, for readers that have a thread of their own."""
        ...

    async def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object, or None where there is none."""
        ...

    async def put(
        self,
        key: str,
        data: Bytes | Sequence[Bytes],
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        """Write the whole object, or its pieces in order, atomically; return its etag.

        Raises:
            PreconditionError: ``if_absent`` and the key exists, or the etag is not ``if_match``.
        """
        ...

    async def put_file(self, key: str, path: Path, moved: Moved = ignore) -> None:
        """Write a file's content; the key is content-addressed: one that exists is left alone.

        ``moved`` hears of the bytes that have come there, as they come.
        """
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Iterate over the objects whose key begins with ``prefix``, in the order of their keys."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; one that does not exist is no error."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a local file that may be memory-mapped, if it does."""
        ...


def pieces(data: Bytes | Sequence[Bytes]) -> list[memoryview]:
    """Return what ``put`` was given as flat byte views, none of them copied."""
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(part).cast("B") for part in parts]


def check_key(key: str) -> None:
    """Refuse keys that would mean different objects in different stores.

    Raises:
        StoreError: the key is empty or absolute, or has an empty, ``.`` or ``..`` part.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key or "\\" in key:
        raise StoreError(
            f"the key {key!r} cannot be stored: keys are relative paths with / between their"
            " parts, none of them empty, . or .."
        )
