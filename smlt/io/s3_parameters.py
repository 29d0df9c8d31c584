"""A bucket of S3 as the parameter store: nothing to start, and every request has its price."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from smlt.errors import PreconditionError, StoreLostError
from smlt.io.link_rate import LinkRate
from smlt.io.object_store import pieces
from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer, Notice, ParameterStore
from smlt.io.s3_address import S3Address
from smlt.io.s3_client import S3Client
from smlt.io.s3_expiring import ExpiringObjects, is_over
from smlt.io.s3_streams import S3Streams

_GUARD_S = 5.0
"""How long a marker that was seen is believed in: a bucket does not forget by itself."""


class S3ParameterStore(ParameterStore):
    """Values are objects that expire, streams are names; see ``docs/decisions/0016``.

    Belongs to one event loop.
    """

    def __init__(
        self, address: S3Address, *, time_limit_s: float, link: LinkRate | None = None
    ) -> None:
        self._address = address
        self._client = S3Client(address, time_limit_s=time_limit_s)
        self._objects = ExpiringObjects(self._client, link)
        self._streams = S3Streams(self._objects)
        self._guards: dict[str, float] = {}

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def requests(self) -> Mapping[str, int]:
        return self._client.requests

    @property
    def carries(self) -> bool:
        return False  # they are names

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        await self._set(guard, b"1", ttl_s)

    async def check(self, guard: str) -> None:
        self._guards.pop(guard, None)
        await self._check(guard)

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
        await self._check(guard)
        await self._set(key, b"".join(pieces(frame)), ttl_s)
        await self._streams.give(stream, fields, ttl_s, maxlen=maxlen, doing=f"announce {key}")

    async def get(
        self, key: str, *, into: memoryview | None = None, max_bytes: int = MAX_FRAME_BYTES
    ) -> memoryview | None:
        answer = await self._read(key, into=into, max_bytes=max_bytes)
        return None if answer is None else memoryview(answer["Body"]).toreadonly()

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
        await self._check(guard)
        condition: dict[str, str] = {"IfNoneMatch": "*"}
        while True:
            try:
                await self._set(key, value, ttl_s, **condition)
            except PreconditionError:
                there = await self._read(key, expired=True)
                if there is not None and not is_over(there):
                    stands = bytes(there["Body"])
                    if stands != value:
                        return stands
                    break  # an attempt of ours whose answer was lost
                # Its time is over, or it is gone: this one may take its place.
                condition = {"IfNoneMatch": "*"} if there is None else {"IfMatch": there["ETag"]}
            else:
                break
        if stream:
            await self._streams.append(stream, fields or {}, ttl_s)
        return value

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        await self._check(guard)
        await self._streams.append(stream, fields, ttl_s)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        return await self._streams.read(after, wait_s=wait_s, limit=limit)

    def on_demand(self, streams: Iterable[str]) -> None:
        self._streams.on_demand(streams)

    def expecting(self, stream: str) -> AbstractContextManager[None]:
        return self._streams.expecting(stream)

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._set(key, value, ttl_s)

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        answers = await asyncio.gather(*(self._read(key) for key in keys))
        return [None if answer is None else bytes(answer["Body"]) for answer in answers]

    async def discard(self, keys: Sequence[str]) -> None:
        await self._objects.delete([self._objects.name(key) for key in keys])

    async def sweep(self, prefix: str) -> None:
        await self._objects.sweep(prefix)
        self._guards.clear()

    async def close(self) -> None:
        await self._client.close()

    async def _check(self, guard: str) -> None:
        """A bucket keeps its markers until a sweep, so that one look is enough for a while."""
        now = asyncio.get_running_loop().time()
        if now < self._guards.get(guard, 0.0):
            return
        if await self._read(guard) is None:
            raise StoreLostError(
                f"the parameter store {self._address.shown} has lost the marker {guard}: it was"
                " swept, or the marker expired"
            )
        self._guards[guard] = now + _GUARD_S

    async def _set(self, key: str, body: bytes, ttl_s: float, **condition: str) -> None:
        await self._objects.write(self._objects.name(key), f"write {key}", body, ttl_s, **condition)

    async def _read(self, key: str, **how: Any) -> dict[str, Any] | None:
        return await self._objects.read(self._objects.name(key), f"read {key}", **how)
