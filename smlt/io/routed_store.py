"""What a cluster and a group of servers have in common: each call is for one of several stores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer, ParameterStore

T = TypeVar("T")


class RoutedStore(ParameterStore):
    """Hands on what is of one key, or of one stream, to the store that has it."""

    @abstractmethod
    async def at(self, key: str, call: Callable[[ParameterStore], Awaitable[T]]) -> T:
        """Call the store that has a value, lease or stream."""

    async def at_frame(self, key: str, call: Callable[[ParameterStore], Awaitable[T]]) -> T:
        """Call the store that has a frame, and the notice of it."""
        return await self.at(key, call)

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
        await self.at_frame(
            key,
            lambda store: store.put(
                key,
                frame,
                stream=stream,
                fields=fields,
                guard=guard,
                ttl_s=ttl_s,
                maxlen=maxlen,
                carried=carried,
            ),
        )

    async def get(
        self, key: str, *, into: memoryview | None = None, max_bytes: int = MAX_FRAME_BYTES
    ) -> memoryview | None:
        return await self.at_frame(
            key, lambda store: store.get(key, into=into, max_bytes=max_bytes)
        )

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
        return await self.at(
            key,
            lambda store: store.first(
                key, value, guard=guard, ttl_s=ttl_s, stream=stream, fields=fields
            ),
        )

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        await self.at(
            stream, lambda store: store.announce(stream, fields, guard=guard, ttl_s=ttl_s)
        )

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self.at(key, lambda store: store.renew(key, value, ttl_s=ttl_s))
