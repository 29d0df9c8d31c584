"""The durable store for code, data, checkpoints and job state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Keys to bytes, with conditional writes. Keys are ``/``-separated, relative, without ``..``.

    All methods raise StoreUnreachableError when the store does not answer, and StoreFullError
    when it has no room.
    """

    @property
    def url(self) -> str:
        """What ``open_object_store`` needs to reach the same store from another process."""
        ...

    async def get(self, key: str) -> tuple[bytes, str]:
        """Return the object and its etag.

        Raises:
            NotFoundError: no such key.
        """
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from offset ``start`` (fewer at the object's end)."""
        ...

    async def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object, or None where there is none."""
        ...

    async def put(
        self, key: str, data: bytes | memoryview, *, if_absent: bool = False, if_match: str = ""
    ) -> str:
        """Write the whole object atomically and return its etag.

        Raises:
            PreconditionError: ``if_absent`` and the key exists, or the etag is not ``if_match``.
        """
        ...

    async def put_file(self, key: str, path: Path) -> None:
        """Write a file's content; its key is content-addressed, so an existing one is left alone."""
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
