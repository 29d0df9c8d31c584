"""The fast store for gradient shards, means, and the metadata of a running generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, Self

from smlt.errors import StoreError

Buffer = bytes | bytearray | memoryview
MAX_FRAME_BYTES = 512 << 20
"""The largest value that Redis and Valkey store unless told otherwise."""
CARRIED = "frame"
"""The field of a notice that holds a frame."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An entry of a stream: what was announced, and the id to go on from."""

    stream: str
    id: str
    fields: Mapping[str, bytes]


class ControlStore(Protocol):
    """Keys, streams and leases: what a client needs, which has nothing to do with frames.

    Bound to nothing: a generation's keys come from ``keys.py``.

    Every write names its ``guard``, the generation's marker, which is checked in the same
    transaction: where it is missing the store was lost (protocol, A generation, 3).
    All methods raise StoreUnreachableError after the store's time limit, StoreLostError where
    the guard is missing, StoreFullError when the server has no memory left, and ConfigError
    where it refuses the user's password, database or certificate.

    A write whose answer was lost is repeated. That changes no key (a second SET writes the same
    bytes, a second ``first`` finds its own value), but it may give a notice twice: readers
    tolerate duplicates.
    """

    @property
    def url(self) -> str:
        """What ``open_parameter_store`` needs to reach the same store from another process."""
        ...

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each kind were sent; empty where nobody counts."""
        return {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        """Write a generation's marker, once, on every server."""
        ...

    async def check(self, guard: str) -> None:
        """Raise StoreLostError unless the marker is there."""
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

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        """Append a notice to a stream, which is removed ``ttl_s`` after its last notice."""
        ...

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        """Return the notices behind the given ids, waiting up to ``wait_s`` for the first one.

        ``after`` maps streams to the id of the last notice seen, ``"0"`` for none. At most
        ``limit`` notices of each stream are returned, oldest first; none when the time is up.
        """
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


class ParameterStore(ControlStore, Protocol):
    """A ``ControlStore`` that holds frames as well: what ranks have."""

    @property
    def carries(self) -> bool:
        """Whether notices have room for small frames."""
        return True

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
        carried: bool = False,
    ) -> None:
        """Store a frame and announce it on a stream, in one transaction.

        Where the store ``carries``, a frame can be stored in the notice alone, as one more field:
        who reads that need not fetch it.

        The frame's buffers are sent as they are, without being joined, and must not change before
        the call returns. ``ttl_s`` holds for the key and, from now on, for the stream. A stream
        keeps at least its last ``maxlen`` notices.
        """
        ...

    async def get(
        self,
        key: str,
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
    ) -> memoryview | None:
        """Return a frame, or None where the key does not exist; the view is read-only.

        It lies in ``into`` (writable, contiguous bytes) if that is given and large enough, which
        saves the page faults of fresh memory; else in memory of its own.

        Raises:
            FrameError: the frame is larger than ``max_bytes``; nothing of it was received.
        """
        ...

    def on_demand(self, streams: Iterable[str]) -> None:
        """Say that notices of these streams are of interest only while somebody expects them.

        A store that has to look for notices, and pays for each look, then saves the others.
        """
        return None  # noqa: RET501

    def expecting(self, stream: str) -> AbstractContextManager[None]:
        """Say that somebody waits for a notice of this stream, for as long as the context lasts."""
        return nullcontext()


@contextmanager
def written_by_us(what: str) -> Iterator[None]:
    """Read what another rank has written: what cannot be that is a StoreError, in a sentence."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise StoreError(
            f"the parameter store holds {what} that no rank has written: {type(exc).__name__} {exc}"
        ) from exc


def all_requests(stores: Iterable[ParameterStore]) -> Mapping[str, int]:
    """Return how many requests of each kind several stores have sent."""
    return sum((Counter(store.requests) for store in stores), Counter())
