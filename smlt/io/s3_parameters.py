"""A bucket of S3 as the parameter store: nothing to start, and every request has its price."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from smlt.errors import NotFoundError, PreconditionError, StoreError, StoreLostError
from smlt.io.link_rate import LinkRate
from smlt.io.object_store import pieces
from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer, Notice, ParameterStore
from smlt.io.s3_address import S3Address
from smlt.io.s3_client import S3Client, date_of
from smlt.io.s3_notices import NoticeName, pack, unpack
from smlt.io.s3_polling import Pace

DELETE_AT_ONCE = 1000
GETS_AT_ONCE = 16
_GUARD_S = 5.0
"""How long a marker that was seen is believed in: a bucket does not forget by itself."""
_TTL = "smlt-ttl-ms"
_CLOCK_STEP_S = 1.0
"""What S3 tells of time is in whole seconds."""


@dataclass(slots=True)
class _Stream:
    """What this client has seen of a stream, in the order in which it did."""

    pace: Pace
    seen: set[str] = field(default_factory=set)
    notices: list[Notice] = field(default_factory=list)
    newest: str = ""
    """The last of all names, in their order."""
    number: int = 0
    """The last one of the ordered notices that are there, read or not."""
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    mine: list[str] = field(default_factory=list)
    """Names that this client has put there."""

    @property
    def start(self) -> str:
        """The name behind which anything new lies."""
        return NoticeName.horizon(self.newest)

    def add(self, name: str) -> None:
        self.seen.add(name)
        self.newest = max(self.newest, name)
        self.number = max(self.number, NoticeName.number(name))


class S3ParameterStore(ParameterStore):
    """Values are objects, streams are names under a prefix of their own, and waiting is polling.

    Nothing in a bucket expires by itself: an object whose time is over by S3's clock is treated as
    if it were not there, until a sweep or the bucket's own rules remove it. The ids of notices are
    positions in what this very client has seen. Belongs to one event loop.
    """

    def __init__(
        self, address: S3Address, *, time_limit_s: float, link: LinkRate | None = None
    ) -> None:
        self._address = address
        self._link = link
        self._client = S3Client(address, time_limit_s=time_limit_s)
        self._streams: dict[str, _Stream] = {}
        self._stir = asyncio.Event()
        """Somebody waits for something that nobody has waited for before."""
        self._guards: dict[str, float] = {}
        self._gets = asyncio.Semaphore(GETS_AT_ONCE)

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
        name, body = NoticeName.timed(fields, self._client.now())
        await self._put(self._notice(stream, name), f"announce {key}", body, Metadata=_life(ttl_s))
        mine = self._stream(stream).mine
        mine.append(name)
        if len(mine) > 2 * maxlen:
            old, mine[:] = mine[:-maxlen], mine[-maxlen:]
            await self._delete([self._notice(stream, each) for each in old])

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
                if there is not None and not _is_over(there):
                    stands = bytes(there["Body"])
                    if stands != value:
                        return stands
                    break  # an attempt of ours whose answer was lost
                # Its time is over, or it is gone: this one may take its place.
                condition = {"IfNoneMatch": "*"} if there is None else {"IfMatch": there["ETag"]}
            else:
                break
        if stream:
            await self._append(stream, fields or {}, ttl_s)
        return value

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        await self._check(guard)
        await self._append(stream, fields, ttl_s)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        streams = [self._stream(stream) for stream in after]
        while True:
            # Who does not wait wants to know what is there now; who has waited has been looking.
            await asyncio.gather(*(self._look(stream, at_once=wait_s <= 0) for stream in after))
            found = []
            for known, last in zip(streams, after.values(), strict=True):
                start = int(last.partition("-")[0])
                found += known.notices[start : start + limit]
            if found or loop.time() >= end:
                return found
            due = min(end, *(known.pace.due for known in streams))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._stir.wait()

    def on_demand(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._stream(stream).pace.on_demand = True

    @contextlib.contextmanager
    def expecting(self, stream: str) -> Iterator[None]:
        pace = self._stream(stream).pace
        pace.begin(asyncio.get_running_loop().time())
        self._stir.set()
        self._stir = asyncio.Event()
        try:
            yield
        finally:
            pace.end()

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._set(key, value, ttl_s)

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        answers = await asyncio.gather(*(self._read(key) for key in keys))
        return [None if answer is None else bytes(answer["Body"]) for answer in answers]

    async def discard(self, keys: Sequence[str]) -> None:
        await self._delete([self._name(key) for key in keys])

    async def sweep(self, prefix: str) -> None:
        names = [name async for name, _ in self._client.names(self._name(prefix), "clear up")]
        await self._delete(names)
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
        await self._put(self._name(key), f"write {key}", body, Metadata=_life(ttl_s), **condition)

    async def _put(self, name: str, doing: str, body: bytes, **more: Any) -> None:
        if self._link is not None:
            await self._link.up.carry(len(body))
        await self._client.call("put_object", doing, Key=name, Body=body, **more)

    async def _read(
        self,
        key: str,
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
        expired: bool = False,
    ) -> dict[str, Any] | None:
        async with self._gets:
            try:
                answer = await self._client.call(
                    "get_object", f"read {key}", into=into, max_bytes=max_bytes, Key=self._name(key)
                )
            except NotFoundError:
                return None
            if self._link is not None:
                await self._link.down.carry(len(answer["Body"]))
        return answer if expired or not _is_over(answer) else None

    async def _append(self, stream: str, fields: Mapping[str, bytes], ttl_s: float) -> None:
        """Take the stream's next number; who comes too late for it takes one behind it."""
        body = pack(fields)
        while True:
            folder, known = self._notice(stream, ""), self._stream(stream)
            start = NoticeName.numbered(known.number) if known.number else ""
            async for name, _ in self._client.names(folder, f"announce on {stream}", start):
                known.number = max(known.number, NoticeName.number(name[len(folder) :]))
            number = known.number + 1
            try:
                await self._put(
                    f"{folder}{NoticeName.numbered(number)}",
                    f"announce on {stream}",
                    body,
                    IfNoneMatch="*",
                    Metadata=_life(ttl_s),
                )
            except PreconditionError:
                continue  # somebody has it, and the next listing tells
            # A gap would be filled by somebody later, where readers have passed.
            known.number = max(known.number, number)
            return

    def _stream(self, stream: str) -> _Stream:
        if stream not in self._streams:
            self._streams[stream] = _Stream(Pace(asyncio.get_running_loop().time()))
        return self._streams[stream]

    async def _look(self, stream: str, *, at_once: bool) -> None:
        """List what is new on a stream if that is due, and read what its names do not tell."""
        known, loop = self._stream(stream), asyncio.get_running_loop()
        async with known.listing:
            # What another reader of this client has just seen is there for all.
            if not at_once and loop.time() < known.pace.due:
                return
            folder = self._notice(stream, "")
            fresh = []
            async for name, _ in self._client.names(folder, f"follow {stream}", known.start):
                short = name[len(folder) :]
                if short not in known.seen:
                    fresh.append(short)
            notices = await asyncio.gather(*(self._fields(folder, name) for name in fresh))
            for name, fields in zip(fresh, notices, strict=True):
                known.add(name)
                if fields is not None:
                    known.notices.append(Notice(stream, f"{len(known.notices) + 1}-0", fields))
            known.pace.looked(loop.time(), found=bool(fresh))

    async def _fields(self, folder: str, name: str) -> Mapping[str, bytes] | None:
        """What a notice says; None once its time is over, or it was trimmed away."""
        try:
            told = NoticeName.fields(name)
            if told is not None:
                return told
            async with self._gets:
                answer = await self._client.call(
                    "get_object", f"read {name}", Key=f"{folder}{name}"
                )
            return None if _is_over(answer) else unpack(answer["Body"])
        except NotFoundError:
            return None
        except ValueError as exc:
            raise StoreError(f"{self._address.shown} holds a notice that is none: {name}") from exc

    async def _delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), DELETE_AT_ONCE):
            some = [{"Key": name} for name in names[start : start + DELETE_AT_ONCE]]
            answer = await self._client.call(
                "delete_objects", "clear up", Delete={"Objects": some, "Quiet": True}
            )
            for error in answer.get("Errors", ()):
                raise StoreError(
                    f"cannot delete {error.get('Key')} in {self._address.shown}:"
                    f" {error.get('Code')}"
                )

    def _name(self, key: str) -> str:
        # Streams and values are told apart by the slash, which no quoted key has.
        return self._address.name(quote(key, safe=":"))

    def _notice(self, stream: str, name: str) -> str:
        return f"{self._name(stream)}/{name}"


def _life(ttl_s: float) -> dict[str, str]:
    return {_TTL: f"{round(ttl_s * 1000)}"}


def _is_over(answer: Mapping[str, Any]) -> bool:
    """By S3's own clock, which alone dates both the object and the answer."""
    ttl_ms = answer["Metadata"].get(_TTL)
    age_s = date_of(answer) - answer["LastModified"].timestamp()
    return ttl_ms is not None and age_s > int(ttl_ms) / 1000 + _CLOCK_STEP_S
