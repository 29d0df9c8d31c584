"""The fast store for gradient shards, means, and the metadata of a running generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Notice:
    """An entry of a stream: what was announced, and the id to go on from."""

    stream: str
    id: str
    fields: Mapping[str, bytes]


class ParameterStore(Protocol):
    """Keys, streams and leases. Bound to nothing: a generation's keys come from ``keys.py``.

    Every write names its ``guard``, the generation's marker, which is checked in the same
    transaction: where it is missing the store was lost (protocol, A generation, 3).
    All methods raise StoreUnreachableError after the store's time limit, StoreLostError where
    the guard is missing, and StoreFullError when the server has no memory left.
    """

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        """Write a generation's marker, once, on every server."""
        ...

    async def check(self, guard: str) -> None:
        """Raise StoreLostError unless the marker is there."""
        ...

    async def put(
        self,
        key: str,
        frame: Sequence[Buffer],
        *,
        stream: str,
        fields: Mapping[str, bytes],
        guard: str,
        ttl_s: float,
        maxlen: int,
    ) -> None:
        """Store a frame and announce it on a stream, in one transaction."""
        ...

    async def get(self, key: str) -> memoryview | None:
        """Return a frame, or None where the key does not exist. The bytes are the caller's."""
        ...

    async def first(
        self,
        key: str,
        value: bytes,
        *,
        guard: str,
        ttl_s: float,
        stream: str = "",
        fields: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """Set the key if nobody has; return what stands there, ours or the winner's.

        The notice, if any, is given in the same transaction, and only by the winner.
        """
        ...

    async def announce(self, stream: str, fields: Mapping[str, bytes], *, guard: str) -> None:
        """Append a notice to a stream."""
        ...

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        """Return the notices behind the given ids, waiting up to ``wait_s`` for the first one."""
        ...

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Write a lease that disappears unless it is renewed."""
        ...

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the current value of each key."""
        ...

    async def discard(self, keys: Sequence[str]) -> None:
        """Free the memory of keys that nobody will read again."""
        ...

    async def sweep(self, prefix: str) -> None:
        """Remove every key that begins with ``prefix``; touches no other."""
        ...

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        ...
